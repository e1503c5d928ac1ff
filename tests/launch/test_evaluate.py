"""`python -m src.evaluate` and `glc eval` on the command line."""

import json
import os
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
import wandb
from click.testing import CliRunner
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from torchvision.models import AlexNet

from glc.cli import main as glc
from glc.evaluation.codecs.still import StillCodec
from glc.launch import evaluate
from glc.launch.lineage import log_evaluation
from glc.launch.overrides import explain_overrides
from tests.codec.fixed_model import fixed_codec_weights
from tests.evaluation.stand_ins import write_images
from tests.jobs.stand_ins import write_tar
from tests.short_runs import QUIET, ROOT
from tests.wandb_file import read_finished_run, without_server

SETS = {"kodak": 24, "clic2020": 428, "div2k": 100, "celebahq": 2824, "coco30k": 40504, "folder": None}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("set"))


def composed(*words: str) -> DictConfig:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("evaluate", list(words))


def run(images: Path, out: Path, *words: str) -> list[dict[str, Any]]:
    return evaluate.evaluate(composed(f"testset.path={images}", f"out={out}", "metrics=none", *words))


@pytest.mark.parametrize("name", SETS)
def test_every_test_set_has_a_description(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLC_DATA", "sets")
    cfg = composed("codec=jpeg", "out=x", f"testset={name}")
    assert cfg.testset.name == name
    assert cfg.testset.count == SETS[name]
    if name == "folder":
        assert cfg.testset.path is None
        assert cfg.testset.center_crop is None
    else:
        assert cfg.testset.path.startswith("sets/")
        assert cfg.testset.source.startswith("https://")
        assert cfg.testset.license
        text = (ROOT / "conf" / "testset" / f"{name}.yaml").read_text()
        assert "# Get " in text
        assert explain_overrides(["codec=x", f"testset={name}", "testset.pth=x"], "evaluate") is not None


def test_a_model_and_other_codecs_in_one_command(images: Path, tmp_path: Path) -> None:
    weights = fixed_codec_weights(tmp_path / "mine.safetensors")
    asked = f"codec=[{weights},jpeg]"
    mine, jpeg = run(images, tmp_path / "out", asked, "codecs.jpeg.qualities=[5,10]", "testset.limit=2")
    assert [point["label"] for point in mine["points"]] == ["q0", "q33.33", "q66.67", "q100"]
    assert [point["label"] for point in jpeg["points"]] == ["q5", "q10"]
    assert mine["codec"]["kind"] == "glc"
    assert len(mine["codec"]["fingerprint"]) == 64
    assert jpeg["codec"]["versions"]["pillow"]
    assert jpeg["codec"]["options"] == {"optimize": True}
    for name, summary in (("mine", mine), ("jpeg", jpeg)):
        assert json.loads((tmp_path / "out" / name / "summary.json").read_text()) == summary
        assert summary["images"] == summary["data"]["count"] == 2
        assert str(tmp_path) not in json.dumps(summary)


def test_command_line_settings_replace_those_of_the_codec(images: Path, tmp_path: Path) -> None:
    (summary,) = run(images, tmp_path / "a", "codec=jpeg", "qualities=[7]")
    assert [point["setting"] for point in summary["points"]] == [{"quality": 7}]
    (summary,) = run(images, tmp_path / "b", "codec=webp", "target_bpp=3")
    assert [point["setting"] for point in summary["points"]] == [{"target_bpp": 3.0}]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["codec=nothing"], "codec=nothing: there is no model 'nothing'.*or one of jpeg, webp, avif"),
        (["codec=no.safetensors"], "no.safetensors: no such weights file"),
        (["codec=docs"], "docs: a folder, not a weights file; `glc export` writes one from a training run"),
        (["codec=[]"], r"codec=\[\]: empty; give a weights file"),
        (["codec=[jpeg,jpeg]"], "two codecs have the name jpeg"),
        (["codec=[jpeg,webp]", "qualities=[5]"], "units differ between codecs; give codecs.NAME.qualities="),
        (["codec=jpeg", "qualities=[5]", "target_bpp=[1]"], "cannot be combined with target_bpp"),
        (["codec=jpeg", "qualities=[101]"], "jpeg: quality 101 is out of range; give 1 to 95"),
        (["codec=jpeg", "testset.path=nowhere"], "testset.path=nowhere: no such folder"),
        (["codec=jpeg", "testset.path=null"], "testset.path: not set; give the folder"),
        (["codec=jpeg", "testset=kodak"], "p0 does not belong to kodak"),
        (["codec=jpeg", "processes=0"], "processes=0: not valid; give an integer of at least 1"),
        (["codec=jpeg", "device=nothing"], "device 'nothing' is not available"),
    ],
)
def test_invalid_settings_are_refused_and_nothing_is_written(
    images: Path, tmp_path: Path, words: list[str], message: str
) -> None:
    with pytest.raises(evaluate.UsageError, match=message):
        run(images, tmp_path / "out", *words)
    assert not (tmp_path / "out").exists()


def test_missing_values_are_named(images: Path) -> None:
    path = f"testset.path={images}"
    for words, key in (
        (["out=x", path], "codec"),
        (["codec=jpeg", path], "out"),
        (["codec=jpeg", "out=x", "testset=shards"], "testset.path"),
    ):
        with pytest.raises(evaluate.UsageError, match=f"{key}: no value; give {key}="):
            evaluate.evaluate(composed("metrics=none", *words))


def test_a_mistyped_key_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        evaluate.main(["codec=jpeg", "qualitys=[5]"])
    assert caught.value.code == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: qualitys: no such key; did you mean qualities")
    assert shown.count("\n") == 1


def test_the_folder_of_weights_is_not_recorded(images: Path, tmp_path: Path) -> None:
    words = ("codec=jpeg", "metrics=full", f"metrics.weights_dir={tmp_path}", f"testset.path={images}")
    (made,) = evaluate.prepare(composed(*words, f"out={tmp_path}")).values()
    assert {"psnr", "ms_ssim", "lpips"} <= set(made.metrics)
    assert str(tmp_path) not in json.dumps(made.protocol)
    assert made.protocol["metrics"]["lpips"]["net"] == "alex"


METRICS = sorted(path.stem for path in (ROOT / "conf" / "metrics").glob("*.yaml"))


@pytest.mark.parametrize("group", METRICS)
def test_every_metrics_group_accepts_weights_dir(
    group: str, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "no cache"))
    with torch.device("meta"):
        shapes = AlexNet().state_dict()
    features = {name: torch.zeros(w.shape) for name, w in shapes.items() if name.startswith("features")}
    torch.save(features, tmp_path / "alexnet.pth")  # LPIPS accepts any file name that starts so
    words = ["codec=jpeg", f"metrics={group}", f"metrics.weights_dir={tmp_path}", f"testset.path={images}"]
    assert explain_overrides(words, "evaluate") is None
    (made,) = evaluate.prepare(composed(*words, f"out={tmp_path / 'out'}")).values()
    only_lpips = [name for name in made.metrics if not name.startswith("lpips")]
    assert made.make_metrics(only_lpips).names == [name for name in made.metrics if name.startswith("lpips")]
    wrong = composed(
        *words[:2], f"metrics.weights_dir={tmp_path / 'no'}", words[3], f"out={tmp_path / 'out'}"
    )
    with pytest.raises(evaluate.UsageError, match=r"metrics.weights_dir='.*/no' is not a folder"):
        evaluate.evaluate(wrong)
    assert not (tmp_path / "out").exists()
    train = ["stage=vqvae", f"metrics={group}", f"metrics.weights_dir={tmp_path}"]
    assert explain_overrides(train, "train") is None


def test_the_printed_table_lists_failures(images: Path, tmp_path: Path) -> None:
    broken = write_images(tmp_path / "set")
    (broken / "p1.png").write_bytes(b"no")
    (summary,) = run(broken, tmp_path / "out", "codec=jpeg", "qualities=[7]")
    lines = evaluate.table(summary).splitlines()
    assert lines[0].split() == ["jpeg", "images", "bpp", "encode_seconds", "decode_seconds"]
    assert lines[1].split()[:2] == ["q7", "3"]
    assert lines[2].startswith("failed: p1: ")


def test_a_metric_that_no_codec_has_is_named_once(
    images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, value in QUIET.items():
        monkeypatch.setenv(key, value)
    words = ["codec=[jpeg,webp]", "codecs.jpeg.qualities=[7]", "codecs.webp.qualities=[7]"]
    cfg = composed(*words, f"testset.path={images}", f"out={tmp_path / 'out'}", "metrics=default")
    with caplog.at_level("INFO", "glc"):
        summaries = evaluate.evaluate(cfg)
    assert caplog.text.count("unavailable: lpips_alex: ") == 1
    assert all("lpips_alex" in summary["unavailable"] for summary in summaries)


def test_glc_eval_runs_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (image,) = write_images(tmp_path / "set", [(24, 32)]).iterdir()
    write_tar(tmp_path / "it's-7.tar", [("p.png", image.read_bytes()), ("bad.png", b"no")])
    monkeypatch.chdir(tmp_path)
    # Passed as typed: in an override, Hydra would interpret quotes, braces and commas.
    words = ["eval", "codec=jpeg", "metrics=none", "--shards", "it's-{7..7}.tar", "out=results"]
    done = CliRunner().invoke(glc, words)
    assert done.exit_code == 1  # an image failed
    summary = json.loads((tmp_path / "results" / "summary.json").read_text())
    assert [failure["image"] for failure in summary["failed"]] == ["it's-7/bad"]
    assert summary["points"][0]["images"] == 1
    assert sorted(os.listdir(tmp_path)) == ["it's-7.tar", "results", "set"]


def test_a_codec_is_made_on_the_device_of_its_process(images: Path, tmp_path: Path) -> None:
    words = ["codec=[jpeg,mine]", "out=x", f"testset.path={images}", "metrics=none"]
    mine = "{_target_: tests.launch.test_evaluate.Placed, device: auto, qualities: [1]}"
    made = evaluate.codec_makers(composed(*words, f"+codecs.mine={mine}"))
    codec = made["mine"]("cuda:3")
    assert isinstance(codec, Placed)
    assert codec.device == "cuda:3"
    assert [setting.quality for setting in made["jpeg"]("cuda:3").settings] == [1, 3, 5, 7, 9]


class Placed(StillCodec):
    """A user's codec that runs on a device."""

    def __init__(self, device: str, **settings: Any) -> None:
        super().__init__("JPEG", ".jpg", **settings)
        self.device = device


@pytest.mark.parametrize(("command", "package"), [("eval", "torchmetrics"), ("train", "webdataset")])
def test_a_missing_package_is_one_line_that_names_the_extra(
    command: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("glc.cli.errors.find_spec", lambda name: None if name == package else name)
    done = CliRunner().invoke(glc, [command, "codec=jpeg"])
    assert done.exit_code == 2
    extra = f"pip install 'glc-codec[{command}]'"
    assert done.output == f"Error: {package}: package not installed; run {extra}\n"


@pytest.fixture(scope="module")
def logged(images: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """The data logged with an account but without a connection to W&B."""
    words = ["codec=jpeg", "codecs.jpeg.qualities=[5,20]", "wandb=true", "wandb_project=mine"]
    out = tmp_path_factory.mktemp("logged") / "out"
    with pytest.MonkeyPatch.context() as patch:
        for key, value in {**QUIET, "WANDB_MODE": "online"}.items():
            patch.setenv(key, value)
        patch.setattr(wandb, "init", without_server(wandb.init))
        (summary,) = run(images, out, *words)
    return summary, out


def offline_run(out: Path) -> Path:
    (file,) = out.glob("wandb/offline-run-*/run-*.wandb")
    return file


def test_an_evaluation_is_logged_to_wandb(logged: tuple[dict[str, Any], Path]) -> None:
    summary, out = logged
    found = read_finished_run(offline_run(out))
    assert found.exit_code == 0
    assert (found.project, found.group, found.job_type) == ("mine", "evaluation folder", "evaluation")
    assert found.name == "jpeg on folder"
    assert found.config["codec"] == summary["codec"]
    assert found.config["protocol"] == summary["protocol"]
    assert (found.summary["images"], found.summary["failed"]) == (summary["images"], 0)
    table = json.loads((offline_run(out).parent / "files" / found.summary["points"]["path"]).read_text())
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    assert [row["label"] for row in rows] == ["q5", "q20"]
    for row, point in zip(rows, summary["points"], strict=True):
        for key in ("bpp", "images", "encode_seconds"):
            assert row[key] == point[key] == found.summary[f"{point['label']}/{key}"]


@pytest.mark.parametrize("lineage", [True, False])
def test_an_evaluation_uses_the_codec_and_makes_its_results(
    logged: tuple[dict[str, Any], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lineage: bool
) -> None:
    summary, _ = logged
    for key, value in {**QUIET, "WANDB_DATA_DIR": str(tmp_path), "WANDB_JOB_TYPE": "mine"}.items():
        monkeypatch.setenv(key, value)
    weights = tmp_path / "small.safetensors"
    weights.write_bytes((ROOT / "src/glc/pretrained/small.safetensors").read_bytes())
    weights.with_suffix(".md").write_text("card")
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    log_evaluation(summary, tmp_path, "mine", weights, lineage)
    found = read_finished_run(offline_run(tmp_path))
    assert found.job_type == "mine"  # the environment wins
    made = {entry.type: entry for entry in found.artifacts if entry.type != "run_table"}
    assert made.keys() == ({"codec", "evaluation"} if lineage else set())
    if lineage:
        assert made["codec"].files.keys() == {"small.safetensors", "small.md"}
        assert (made["codec"].name, made["codec"].used) == ("codec-small", True)
        assert made["evaluation"].files.keys() == {"summary.json"}
        assert (made["evaluation"].name, made["evaluation"].used) == ("jpeg-on-folder", False)


def test_a_failed_wandb_run_is_finished(
    logged: tuple[dict[str, Any], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any, **options: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(wandb, "Table", full)
    with pytest.raises(OSError, match="disk full"):
        log_evaluation(logged[0], tmp_path / "second", "mine")
    assert wandb.run is None
    assert read_finished_run(offline_run(tmp_path / "second")).exit_code == 1


def test_wandb_without_its_packages_is_refused(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "find_spec", lambda name: None)
    with pytest.raises(evaluate.UsageError, match=r"pip install 'glc-codec\[train\]'"):
        run(images, tmp_path / "out", "codec=jpeg", "wandb=true")
    assert not (tmp_path / "out").exists()


def commands() -> list[str]:
    found = []
    for path in [ROOT / "docs" / "evaluation.md", ROOT / "conf" / "evaluate.yaml"]:
        found += re.findall(
            r"(?:python -m src\.evaluate|glc eval(?: --shards '\S+')?) ((?:\S+=\S+ ?)+)", path.read_text()
        )
    return found


def test_commands_in_the_documents_compose() -> None:
    assert len(commands()) >= 6
    for command in commands():
        words = shlex.split(command)
        assert explain_overrides(words, "evaluate") is None
        assert composed(*words).codec


def test_the_configuration_of_every_codec_is_complete() -> None:
    for name, config in composed("codec=x", "out=x").codecs.items():
        assert not OmegaConf.missing_keys(config), name
        assert config.qualities
