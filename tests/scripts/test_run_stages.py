"""scripts/run_stages.py: order of runs, their settings, export and evaluation."""

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from PIL import Image

from glc.codec.weights.file import read_weights
from glc.errors import WeightsError
from glc.launch.train import register_resolvers
from tests.codec.fixed_model import fixed_codec_weights
from tests.programs import ROOT, load_script

script = load_script("run_stages")


def write_checkpoint(path: Path, steps: int, planned: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    recipe = {"trainer": {"max_steps": planned}}
    torch.save({"global_step": steps, "glc": {"format": 1, "recipe": recipe}, "state_dict": {}}, path)


class Commands:
    """Replaces the commands: each training run adds steps to its checkpoint."""

    def __init__(self, output: Path, per_call: int, planned: int = 100) -> None:
        self.output, self.per_call, self.planned = output, per_call, planned
        self.calls: list[str] = []
        self.words: dict[str, list[str]] = {}

    def __call__(self, command: list[str], **_: Any) -> "subprocess.CompletedProcess[str]":
        given = dict(word.split("=", 1) for word in command if "=" in word)
        if "export" in command:
            source, file = map(Path, command[4:6])
            fixed_codec_weights(file)
            call = f"export {source.parts[-4]}/{source.parts[-3]}"
        elif "codec" in given:
            call = f"evaluate {Path(given['out']).name}"
            Path(given["out"]).mkdir(parents=True)
            (Path(given["out"]) / "summary.json").write_text("{}")
        else:
            call = f"{given['name']}/{given['stage']}"
            path = self.output / call / "checkpoints" / "last.ckpt"
            done = torch.load(path)["global_step"] if path.is_file() else 0
            planned = int(given.get("trainer.max_steps", self.planned))
            write_checkpoint(path, min(done + self.per_call, planned), planned)
        self.calls.append(call)
        self.words[call] = command
        return subprocess.CompletedProcess(command, 0)

    def taken(self) -> list[str]:
        found, self.calls = self.calls, []
        return found


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    found = Commands(tmp_path, per_call=60)
    monkeypatch.setattr(script.subprocess, "run", found)
    return found


def words(plan: str, tmp_path: Path, *more: str) -> list[str]:
    inputs = [word for name in ("shards", "weights") for word in (f"--{name}", str(tmp_path))]
    return [plan, *inputs, "--output", str(tmp_path), "--device", "cpu", *more]


def test_stage_starts_when_the_previous_one_is_done(commands: Commands, tmp_path: Path) -> None:
    given = words("small", tmp_path, "--minutes", "10", "joint:seed=5")
    assert script.main(given) == script.MORE
    assert commands.taken() == ["small/vqvae"]
    while script.main(given) == script.MORE:
        pass
    stages = ("vqvae", "transform", "transform", "joint", "export small/joint", "joint", "export small/joint")
    assert commands.taken() == [stage if " " in stage else f"small/{stage}" for stage in stages]
    trained = commands.words["small/joint"]
    assert {"experiment=small", "resume=auto", f"data.train={tmp_path}/train", "seed=5"} <= set(trained)
    assert "seed=5" not in commands.words["small/transform"]
    assert commands.words["export small/joint"][-1] == "--half"
    assert script.main([*given, "--photos", str(tmp_path)]) == 0
    assert commands.taken() == []


def test_applications_are_trained_in_turn_and_continued(commands: Commands, tmp_path: Path) -> None:
    steps = [
        f"*-{name}:trainer.max_steps={n}" for name, n in (("denoise", 100), ("inpaint", 50), ("mosaic", 60))
    ]
    given = words("applications", tmp_path, "--minutes", "9", *steps)
    assert script.main(given) == script.MORE
    runs = ["small-denoise/restoration", "small-inpaint/restoration", "small-mosaic/stylization"]
    assert commands.taken() == [call for run in runs for call in (run, f"export {run}")]
    told = {name: dict(w.split("=", 1) for w in commands.words[name] if "=" in w) for name in runs}
    assert told[runs[2]]["stage.style"] == str(tmp_path / "mosaic.png")
    assert told[runs[0]]["degradation"] == "gaussian_noise"
    assert told[runs[0]]["init_from"] == "small"
    assert [float(told[run]["max_minutes"]) for run in runs] == pytest.approx([3, 4.5, 9], abs=0.1)
    assert script.main(given) == 0
    assert commands.taken() == [runs[0], f"export {runs[0]}"]
    (tmp_path / "small-inpaint.encoder.safetensors").unlink()
    assert script.main(given) == 0
    assert commands.taken() == [f"export {runs[1]}"]
    short = ["--minutes", "0.4", "--only", "*-mosaic", "*-mosaic:trainer.max_steps=90"]
    assert script.main([*given, *short]) == script.MORE
    assert commands.taken() == []


def test_rows_are_measured_and_windows_changed(commands: Commands, tmp_path: Path) -> None:
    commands.per_call = 600
    given = words("ablations", tmp_path, "--start", str(tmp_path), "--images", str(tmp_path))
    assert script.main([*given, "--only", "factorized/transform", "transform:trainer.max_steps=7"]) == 0
    row = ["factorized/transform", "export factorized/transform", "evaluate factorized-transform"]
    assert commands.taken() == row
    assert {"model/variants=factorized", f"init_from={tmp_path}"} <= set(commands.words[row[0]])
    assert commands.words[row[0]][-1] == "trainer.max_steps=7"
    assert f"testset.path={tmp_path}" in commands.words[row[2]]
    rows = ["--only", "full", "--only", "attention_16/joint", "--evaluate", "*/joint"]
    assert script.main([*given, *rows]) == 0
    assert commands.taken()[-2:] == ["evaluate full-joint", "evaluate attention_16-joint"]
    full, changed = (
        read_weights(tmp_path / f"{name}-joint.safetensors").description for name in ("full", "attention_16")
    )
    assert full["encoder"]["window"] == 8
    assert changed["encoder"]["window"] == changed["decoder"]["window"] == 16
    assert changed["coder"] == full["coder"]


@pytest.mark.parametrize("name", ["small", "applications", "ablations"])
def test_runs_of_all_plans_compose(name: str) -> None:
    plan = script.read_plan(name)
    values = {"output": "x", **{key: "x" for name in plan["inputs"] for key in (name, f"{name}_name")}}
    runs = script.runs_of(plan, values, "cpu")
    register_resolvers()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        for run in runs:
            words = [f"stage={run.stage}", f"name={run.row}", "max_minutes=1", *run.settings]
            assert compose("train", words).stage.name == run.stage


def test_change_window_changes_all_windows() -> None:
    described = {"encoder": {"window": 32, "stages": [{"window": 32, "width": 8}]}, "name": "window"}
    assert script.change_window(described, None) == {
        "encoder": {"window": None, "stages": [{"window": None, "width": 8}]},
        "name": "window",
    }


def test_device_sets_accelerator_and_loader() -> None:
    plan = script.read_plan("small")
    values = dict.fromkeys(("output", *plan["inputs"]), "x")

    def settings_for(device: str) -> set[str]:
        run = script.runs_of(plan, values, device)[0]
        return {word for word in run.settings if word.split(".")[0] in ("trainer", "data")}

    assert "trainer.accelerator=cpu" in settings_for("cpu")
    assert {"trainer.accelerator=gpu", "data.cache=false"} <= settings_for("cuda")
    assert not [word for word in settings_for("auto") if "accelerator" in word or "cache" in word]


def test_previous_checkpoint_counts_if_the_last_is_corrupt(tmp_path: Path) -> None:
    run = script.Run("a", "vqvae", [], None, None, [], [])
    folder = tmp_path / "a" / "vqvae" / "checkpoints"
    assert script.steps_of(run, tmp_path, [])[0] == 0
    write_checkpoint(folder / "previous.ckpt", 250, 300)
    (folder / "last.ckpt").write_bytes(b"cut off")
    assert script.steps_of(run, tmp_path, []) == (250, 300)
    assert script.steps_of(run, tmp_path, ["trainer.max_steps=250"]) == (250, 250)
    (folder / "previous.ckpt").unlink()
    (folder / "last.ckpt").write_bytes(b"cut off")
    with pytest.raises(WeightsError, match="last"):
        script.steps_of(run, tmp_path, [])


def test_missing_plan_and_inputs_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert script.main(["smal"]) == 2
    assert (
        "smal: no such plan; give one of ablations, applications, beyond, codebooks, small or"
        in capsys.readouterr().err
    )
    with pytest.raises(SystemExit):
        script.main(["small", "--output", str(tmp_path)])
    assert "--shards, --weights" in capsys.readouterr().err


def test_mosaic_is_reproducible(tmp_path: Path) -> None:
    first, again = (script.make_mosaic(tmp_path / f"{i}.png", side=64) for i in range(2))
    assert first.read_bytes() == again.read_bytes()
    assert len(np.unique(np.asarray(Image.open(first)).reshape(-1, 3), axis=0)) > 10
