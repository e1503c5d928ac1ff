"""The dashboard names only keys that runs log; artifacts have their lineage; agents of a sweep start runs.

The runs are real: stage I, three runs of stage II as W&B's own agent starts them, stage III, all offline.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from glc.cli import main
from glc.launch import dashboard
from glc.launch.config import UsageError
from glc.training import artifacts
from glc.training.loggers import with_means
from tests.short_runs import QUIET, figures
from tests.tracked_runs import (
    POINTS,
    Tracked,
    agent_file,
    caches,
    content,
    file_of,
    start_agent_run,
    tracked_runs,
)
from tests.wandb_file import OfflineRun, read_finished_run
from tests.wandb_server import wandb_server

pytestmark = pytest.mark.timeout(600)  # five runs, which the first test makes
STAGES = ("vqvae", "transform", "joint")


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> Tracked:
    return tracked_runs(tmp_path_factory.mktemp("tracked"))


@pytest.fixture(scope="module")
def runs(tracked: Tracked) -> dict[str, list[OfflineRun]]:
    """The runs of each stage."""
    agent = [read_finished_run(agent_file(tracked.base, folder.name)) for folder in tracked.agent]
    return {"vqvae": [content(tracked.vqvae)], "transform": agent, "joint": [content(tracked.joint)]}


def walk(node: Any) -> Iterator[tuple[str, Any]]:
    """Yield each key and value of nested JSON."""
    for key, value in node.items() if isinstance(node, dict) else ():
        yield key, value
        yield from walk(value)
    for value in node if isinstance(node, list) else ():
        yield from walk(value)


def named(panel: dict[str, Any]) -> tuple[set[str], set[str]]:
    """Return the logged keys and the keys of the configuration that the specification of a panel names."""
    logged, settings = set(), set()
    for key, value in walk(panel["config"]):
        if key in ("metrics", "mediaKeys"):
            logged.update(value)
        elif key == "targetKey":
            logged.add(value)
        elif isinstance(value, str) and key in ("xAxis", "yAxis", "accessor"):
            section, _, name = value.rpartition(":")
            (settings if section == "config" else logged).add(name)
        elif key == "args" and isinstance(value, list):
            logged.update(entry["value"] for entry in value if entry.get("name") == "tableKey")
        elif key == "key" and isinstance(value, dict) and value.get("nodeType") == "const":
            logged.add(value["val"])
    return logged, settings


def known(run: OfflineRun) -> set[str]:
    """Return what a panel can show of a run: keys of its history and summary, `min` and the like too."""
    kinds = {
        f"{key}.{kind}" for key, value in run.summary.items() if isinstance(value, dict) for kind in value
    }
    return run.keys() | set(run.summary) | kinds


def setting(run: OfflineRun, name: str) -> Any:
    first, value, *rest = name.split(".")
    assert value == "value", name  # as W&B stores it
    found: Any = run.config[first]
    for part in rest:
        found = found[part]
    return found


def test_every_panel_shows_what_runs_of_its_stages_logged(runs: dict[str, list[OfflineRun]]) -> None:
    spec = dashboard.specification("me", "mine")["workspace"]["spec"]["section"]
    sections = spec["panelBankConfig"]["sections"]
    assert [section["name"] for section in sections] == [section.name for section in dashboard.SECTIONS]
    seen = 0
    for section, made in zip(dashboard.SECTIONS, sections, strict=True):
        assert made["panels"]
        for panel in made["panels"]:
            logged, settings = named(panel)
            assert logged or panel["viewType"] == "Run Comparer", panel
            # The first run of a sweep has nothing to be compared with.
            sweep = [("transform", run) for run in runs["transform"][1:]]
            plain = [(stage, run) for stage in section.stages for run in runs[stage]]
            for stage, run in sweep if section.name == "Sweep" else plain:
                assert logged <= known(run), (section.name, stage, logged - known(run))
                assert all(setting(run, name) is not None for name in settings)
            seen += len(logged)
    assert seen > 60


def test_pinned_columns_exist(runs: dict[str, list[OfflineRun]]) -> None:
    (runset,) = dashboard.specification("me", "mine")["workspace"]["spec"]["section"]["runSets"]
    assert runset["runFeed"]["columnOrder"] == ["run:displayName", *dashboard.COLUMNS]
    for column in dashboard.COLUMNS:
        section, _, name = column.partition(":")
        for run in runs["transform"]:
            assert name in known(run) if section == "summary" else setting(run, name) is not None


def test_curves_are_drawn_as_the_client_draws_a_logged_chart(runs: dict[str, list[OfflineRun]]) -> None:
    drawn = runs["joint"][0].config["_wandb"]["visualize"]["rd/curve_psnr"]["panel_config"]
    sections = dashboard.specification("me", "mine")["workspace"]["spec"]["section"]["panelBankConfig"][
        "sections"
    ]
    chart = sections[0]["panels"][0]["config"]

    def fields(config: dict[str, Any]) -> dict[str, Any]:
        (query,) = config["userQuery"]["queryFields"]
        return {field["name"]: field.get("args", []) for field in query["fields"] if "value" not in field}

    assert chart["panelDefId"] == drawn["panelDefId"]
    assert {key: chart["fieldSettings"][key] for key in "xy"} == {
        key: drawn["fieldSettings"][key] for key in "xy"
    }
    assert fields(chart).keys() == fields(drawn).keys() - {"_defaultColorIndex"}
    table = runs["joint"][0].summary["rd/points"]
    assert table["_type"] == "table-file"


def test_the_report_shows_panels_of_the_workspace_and_filters_by_stage(
    runs: dict[str, list[OfflineRun]],
) -> None:
    report = dashboard.specification("me", "mine")["report"]
    grids = [block["metadata"] for block in report["spec"]["blocks"] if block["type"] == "panel-grid"]
    stages = []
    for grid in grids:
        (runset,) = grid["runSets"]
        ((only,),) = [runset["filters"]["filters"]]
        assert (only["key"], only["op"]) == ({"section": "run", "name": "jobType"}, "IN")
        assert "project" not in runset  # that of the report
        stages.append(tuple(only["value"]))
        for panel in grid["panelBankSectionConfig"]["panels"]:
            logged, _ = named(panel)
            for stage in only["value"] if "sweep/settings" not in logged else ["transform"]:
                assert logged <= known(runs[stage][-1])
    assert set(stages) == {("transform", "joint"), ("vqvae",), ("transform",), ("joint",)}
    assert {run.job_type for found in runs.values() for run in found} == set(STAGES)


def test_dry_run_prints_json_without_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **options: Any) -> None:
        raise AssertionError("a request")

    monkeypatch.setattr("wandb.Api", fail)
    done = CliRunner().invoke(main, ["dashboard", "me/mine", "--dry-run"])
    assert done.exit_code == 0, done.output
    printed = json.loads(done.output)
    assert (printed["workspace"]["entity"], printed["workspace"]["project"]) == ("me", "mine")
    assert printed["report"]["project"] == {"name": "mine", "entityName": "me"}


@pytest.mark.parametrize("given", ["mine", "/mine", "me/", "me/mine/more"])
def test_a_project_without_its_entity_is_refused(given: str) -> None:
    done = CliRunner().invoke(main, ["dashboard", given])
    assert done.exit_code == 2
    assert f"{given}: not ENTITY/PROJECT; give, for example, me/glc" in done.output


def test_saving_again_replaces_the_workspace_and_keeps_the_report(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[dict[str, Any]] = []
    views: dict[str, dict[str, Any]] = {}

    class Api:
        def reports(self, path: str) -> list[Any]:
            assert path == "me/mine"
            made = [values for values in sent if values["type"] == "runs"]
            return [type("Report", (), {"display_name": values["displayName"]}) for values in made]

        def projects(self, entity: str) -> list[Any]:
            return [type("Project", (), {"name": "mine"})]

    def execute(api: Any, query: str, values: dict[str, Any]) -> dict[str, Any]:
        if "viewName" in values:
            found = [{"node": view} for view in views.values() if view["name"] == values["viewName"]]
            return {"project": {"allViews": {"edges": found}}}
        sent.append(values)
        about = {
            "id": values.get("id") or "made",
            "name": values["name"],
            "displayName": values["displayName"],
        }
        project = {"name": "mine", "entityName": "me"}
        view = {**about, "description": "", "project": project, "spec": values["spec"]}
        if values["type"] == "project-view":
            views[values["name"]] = view
        return {"upsertView": {"view": view}}

    api = Api()
    monkeypatch.setattr("wandb.Api", lambda: api)
    for module in ("workspaces.internal", "reports.v2.interface"):
        monkeypatch.setattr(f"wandb_workspaces.{module}.execute_graphql", execute)
    for module in ("workspaces.interface", "reports.v2.interface"):
        monkeypatch.setattr(f"wandb_workspaces.{module}.get_app_url", lambda api: "https://example.org")
    monkeypatch.setattr("wandb_workspaces.reports.v2.interface._get_api", lambda: api)
    dashboard.save("me", "mine")
    dashboard.save("me", "mine")
    assert [values["type"] for values in sent] == ["project-view", "runs", "project-view"]
    assert [values.get("id") for values in sent if values["type"] == "project-view"] == [None, "made"]
    assert sent[0]["name"] == sent[2]["name"]
    assert (
        json.loads(sent[0]["spec"]).keys()
        == dashboard.specification("me", "mine")["workspace"]["spec"].keys()
    )


def test_without_an_account_it_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    with pytest.raises(UsageError, match=r"^me/mine: .*(log in|login|API key)"):
        dashboard.save("me", "mine")


def test_runs_of_an_agent_have_their_own_folder_group_job_type_and_parameters(
    tracked: Tracked, runs: dict[str, list[OfflineRun]]
) -> None:
    for number, (folder, run) in enumerate(zip(tracked.agent, runs["transform"], strict=True)):
        assert folder.name == run.identity == f"agentrun{number}"
        assert (run.group, run.job_type, run.project, run.sweep) == ("all", "transform", "mine", "sweep123")
        assert run.name == f"all/transform/agentrun{number}"
        assert (folder / "checkpoints" / "last.ckpt").is_file()
        stage = run.config["stage"]
        assert stage["lmbda"] == POINTS[number]["stage.lmbda"] == run.config["stage.lmbda"]
        assert stage["optimizer"]["lr"] == POINTS[number]["stage.optimizer.lr"]
        assert run.exit_code == 0


def test_a_run_that_the_agent_starts_again_resumes(tracked: Tracked) -> None:
    done = start_agent_run(tracked.base, 0, tracked.more, **{"trainer.max_steps": "4"})
    assert done.returncode == 0, done.stdout + done.stderr
    steps = [row["step"] for row in figures(tracked.agent[0], 1) if "train/loss" in row]
    assert steps == [2, 3]
    assert (tracked.agent[0] / "wandb-id.txt").read_text() == "agentrun0"


def test_the_settings_of_a_sweep_are_compared(tracked: Tracked, runs: dict[str, list[OfflineRun]]) -> None:
    first = runs["transform"][0].summary
    assert "sweep/settings" not in first
    table = runs["transform"][-1].summary["sweep/settings"]
    file = agent_file(tracked.base, "agentrun2").parent / "files" / table["path"]
    written = json.loads(file.read_text())
    assert written["columns"] == ["run", "stage.lmbda", "stage.optimizer.lr"]
    assert written["data"] == [
        ["agentrun0", "0.5", "0.0001"],
        ["agentrun1", "1.0", "2.5e-05"],
        ["agentrun2", "2.0", "0.0001"],
    ]


def test_tensorboard_has_the_same_scalars(tracked: Tracked, runs: dict[str, list[OfflineRun]]) -> None:
    pytest.importorskip("tensorboard", reason="needs the extra `tensorboard`")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for folder, run in ((tracked.vqvae, runs["vqvae"][0]), (tracked.agent[2], runs["transform"][2])):
        events = EventAccumulator(str(folder / "tensorboard" / "version_0"))
        events.Reload()
        scalars = {key for row in run.history for key, value in row.items() if isinstance(value, float | int)}
        assert set(events.Tags()["scalars"]) == {key for key in scalars if key[0] != "_"} - {
            "trainer/global_step"
        }
        rows = {key for row in figures(folder) for key in with_means(row)} - {"step"}
        assert set(events.Tags()["scalars"]) == rows
    assert events.Tags()["images"] == ["val/panel/0"]
    assert events.Tags()["distributions"] == ["val/hyper_codebook_histogram"]
    assert "sweep/settings/text_summary" in events.Tags()["tensors"]


def test_rows_begin_at_the_first_step(runs: dict[str, list[OfflineRun]]) -> None:
    for run in (found for stage in STAGES for found in runs[stage]):
        for key in ("train/loss", "train/grad_norm", "lr-AdamW"):
            steps = [row["trainer/global_step"] for row in run.history if key in row]
            assert steps[0] == 0, (run.name, key)


def artifacts_of(run: OfflineRun, used: bool) -> dict[str, Any]:
    """Return the artifacts that a run uses or makes, without its tables."""
    return {found.name: found for found in run.artifacts if found.used == used and found.type != "run_table"}


def test_each_stage_uses_what_the_one_before_it_made(
    tracked: Tracked, runs: dict[str, list[OfflineRun]]
) -> None:
    first, second, third = runs["vqvae"][0], runs["transform"][0], runs["joint"][0]
    made = {name: found for run in (first, second) for name, found in artifacts_of(run, used=False).items()}
    assert made.keys() == {"checkpoint-all-vqvae", "checkpoint-all-transform-agentrun0"}
    assert {tuple(sorted(found.aliases)) for found in made.values()} == {("last", "latest")}
    assert artifacts_of(first, used=True).keys() == {"data-packed"}
    assert artifacts_of(second, used=True).keys() == {"data-packed", "checkpoint-all-vqvae"}
    assert artifacts_of(third, used=True).keys() == {"data-packed", *made}  # stage I has the discriminator
    for run in (second, third):
        for name, found in artifacts_of(run, used=True).items():
            assert run.config["lineage"][name]["digest"] == found.digest
            assert found.digest == made[name].digest if name in made else found.type == "dataset"
    assert second.config["lineage"]["checkpoint-all-vqvae"]["path"] == str(
        (tracked.vqvae / "checkpoints" / "last.ckpt").resolve()
    )


def test_sync_uploads_one_history_of_all_parts_and_the_lineage(
    tracked: Tracked, runs: dict[str, list[OfflineRun]], tmp_path: Path
) -> None:
    """The pinned client, against a server of the tests."""
    parts = sorted(tracked.base.glob("agent/wandb/offline-run-*-agentrun0"))
    assert len(parts) == 2, "the run that was started again"
    with wandb_server() as server:
        server.sync(tmp_path, file_of(tracked.vqvae).parent)
        server.sync(tmp_path, *reversed(parts))
        run = server.runs["agentrun0"]
        assert list(run.rows) == list(range(len(run.rows)))
        assert [row["_step"] for row in run.rows.values()] == list(run.rows)
        steps = [row["trainer/global_step"] for row in run.rows.values() if "train/loss" in row]
        assert steps == [0, 1, 2, 3]
        assert (run.variables["groupName"], run.variables["jobType"]) == ("all", "transform")
        (checkpoint,) = (key for key in server.runs[runs["vqvae"][0].identity].logged if "vqvae" in key)
        assert checkpoint in run.used
        assert re.fullmatch(r"checkpoint-all-vqvae:[0-9a-f]{32}", checkpoint)


def test_an_export_uses_the_checkpoint_and_makes_the_codec_with_its_card(
    tracked: Tracked, runs: dict[str, list[OfflineRun]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, value in {**QUIET, **caches(tmp_path)}.items():
        monkeypatch.setenv(key, value)
    (tmp_path / "mine.md").write_text("card")
    words = ["export", str(tracked.joint), str(tmp_path / "mine.safetensors"), "--wandb", "theirs"]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    run = content(tmp_path)
    assert (run.job_type, run.project, run.exit_code) == ("export", "theirs", 0)
    used, made = artifacts_of(run, used=True), artifacts_of(run, used=False)
    assert used.keys() == {"checkpoint-all-joint"}
    trained = artifacts_of(runs["joint"][0], used=False)["checkpoint-all-joint"]
    assert used["checkpoint-all-joint"].digest == trained.digest
    assert made["codec-mine"].files.keys() == {"mine.safetensors", "mine.md"}


def test_large_files_are_referenced_with_the_same_version(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    path.write_bytes(bytes(2000))
    found = artifacts.checkpoint(path, {"dir": "runs/a/vqvae", "runs_dir": "runs"}, 7)
    assert found.metadata == {"run": "a/vqvae", "stage": None, "step": 7}
    uploaded, referenced = artifacts.artifact(found, 0.003), artifacts.artifact(found, 0.001)
    assert uploaded.manifest.entries["last.ckpt"].ref is None
    assert referenced.manifest.entries["last.ckpt"].ref == path.resolve().as_uri()
    assert uploaded.name == referenced.name == "checkpoint-a-vqvae"
    assert uploaded.digest == referenced.digest


def test_an_artifact_that_cannot_be_logged_does_not_end_the_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gone = artifacts.File("dataset", "data-x", (tmp_path / "manifest.json",))
    with artifacts.not_fatal(gone.name):
        artifacts.artifact(gone)
    assert "W&B: artifact data-x is not logged: " in caplog.text


@pytest.mark.parametrize(("text", "name"), [("a/b c=1", "a-b-c-1"), ("x" * 200, "x" * 128), ("é-1", "1")])
def test_names_of_artifacts_are_valid(text: str, name: str) -> None:
    assert artifacts.valid_name(text) == name
