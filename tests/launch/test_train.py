"""Settings that `train` refuses before it writes, and the messages."""

import errno
import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from glc.io.checkpoint import save_checkpoint
from glc.launch.overrides import explain_overrides
from glc.launch.start import UsageError
from glc.launch.train import prepare, run_lock, train
from glc.launch.train import run as entry
from glc.training import load_stage
from glc.training.checkpoints import DivergedError
from glc.training.loggers import RowLogger
from tests.codec.fixed_model import fixed_codec_weights
from tests.io.test_checkpoint import NAMES_OF_0_1
from tests.programs import Started
from tests.short_runs import arguments, checkpoint, compose, figures, live_weights, run, settings


@pytest.fixture(scope="module")
def trained(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of stage I with two steps; tests do not change it."""
    return run(settings(images, tmp_path_factory.mktemp("runs"), "done", "vqvae", 2))


def refused(values: dict[str, Any]) -> str:
    """Return the error message; check that nothing is written."""
    root = Path(values["runs_dir"])
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    with pytest.raises(UsageError) as caught:
        run(values)
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before
    return str(caught.value)


def options(trained: Path, images: Path, stage: str = "vqvae", **changes: Any) -> dict[str, Any]:
    return {**settings(images, trained.parents[1], "done", stage, 2), **changes}


def test_an_existing_run_is_not_overwritten(trained: Path, images: Path) -> None:
    message = refused(options(trained, images))
    assert str(trained / "checkpoints") in message
    for way in ("resume=last", "name=", "overwrite=true"):
        assert way in message


def test_overwrite_removes_checkpoints_only_after_all_checks(
    trained: Path, images: Path, tmp_path: Path
) -> None:
    values = settings(images, tmp_path, "again", "vqvae", 2)
    folder = run(values)
    (folder / "checkpoints" / "step-000001.ckpt").write_bytes(b"old")
    message = refused({**values, "overwrite": "true", "data.train": str(tmp_path / "nowhere")})
    assert "data.train" in message
    run({**values, "overwrite": "true", "trainer.max_steps": 1, "data.epoch_batches": 1})
    assert checkpoint(folder)["global_step"] == 1
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["last.ckpt"]


def test_a_missing_previous_stage_is_refused(trained: Path, images: Path, tmp_path: Path) -> None:
    message = refused(settings(images, tmp_path, "alone", "transform"))
    assert "stage=transform starts from stage=vqvae" in message
    assert str(tmp_path / "alone" / "vqvae" / "checkpoints" / "last.ckpt") in message
    assert "name=alone" in message
    assert "init_from=" in message
    # Stage II is missing although stage I exists.
    assert "starts from stage=transform" in refused(options(trained, images, "joint"))


def test_weights_of_another_model_are_refused(trained: Path, images: Path) -> None:
    message = refused(options(trained, images, "transform", **{"model.encoder.channels": 24}))
    assert "model.encoder does not fit" in message
    assert "model=tiny" in message
    assert str(trained / "checkpoints" / "last.ckpt") in message


def test_init_from_takes_a_path_or_none(trained: Path, images: Path, tmp_path: Path) -> None:
    values = {
        **settings(images, tmp_path, "named", "vqvae", 1),
        "init_from": str(trained / "checkpoints" / "last.ckpt"),
        "stage.optimizer.lr": 0,
        "callbacks.codebooks": "null",
    }
    state = live_weights(checkpoint(run(values)))
    source = checkpoint(trained)["state_dict"]
    assert state.keys() == source.keys()
    assert all(torch.equal(value, source[key]) for key, value in state.items())
    fresh = live_weights(checkpoint(run({**values, "init_from": "none", "name": "fresh"})))
    assert any(not torch.equal(value, source[key]) for key, value in fresh.items())
    message = refused({**values, "init_from": str(tmp_path / "missing.ckpt"), "name": "third"})
    assert "missing.ckpt: no such file" in message


def test_checkpoints_that_cannot_be_resumed_are_refused(trained: Path, images: Path, tmp_path: Path) -> None:
    message = refused({**settings(images, tmp_path, "new", "vqvae"), "resume": "last"})
    assert "resume=last" in message
    assert "no such file" in message
    damaged = tmp_path / "damaged.ckpt"
    damaged.write_bytes((trained / "checkpoints" / "last.ckpt").read_bytes()[:5000])
    assert "damaged.ckpt" in refused(options(trained, images, resume=str(damaged)))
    last = str(trained / "checkpoints" / "last.ckpt")
    assert "no checkpoints/last.ckpt in this folder" in refused(
        options(trained, images, resume=str(trained.parent))
    )
    message = refused(options(trained, images, "transform", resume=str(trained)))
    assert "stage=vqvae" in message
    assert "stage=transform" in message
    assert "init_from=" in message
    message = refused(options(trained, images, resume=last, **{"model.decoder.channels": 24}))
    assert "autoencoder.decoder" in message
    assert "of another shape" in message
    assert "model=tiny" in message


def test_missing_images_are_refused(images: Path, tmp_path: Path) -> None:
    values = settings(images, tmp_path, "data", "vqvae")
    for key in ("data.train", "data.val"):
        message = refused({**values, key: str(tmp_path / "nowhere")})
        assert key in message
        assert "nowhere" in message
    message = refused({**values, "data.train": "???"})
    assert "data.train=" in message
    assert "data.crop: 65" in refused({**values, "data.crop": 65})


def test_values_out_of_range_name_their_key(images: Path, tmp_path: Path) -> None:
    values = {**settings(images, tmp_path, "range", "transform"), "init_from": "none"}
    assert "stage.lmbda: 2 values" in refused({**values, "stage.lmbda": "[1,2]"})
    assert "callbacks.ema.decay" in refused({**values, "callbacks.ema.decay": 1})
    assert "stage.schedule.hold=3: not valid" in refused({**values, "stage.schedule.hold": 3})
    assert "seed=null: not valid" in refused({**values, "seed": "null"})
    assert "data.val=null: not valid" in refused({**values, "data.val": "null"})
    del values["data.batch_size"]
    assert "stage.accumulate=0" in refused({**values, "batch": 8, "stage.accumulate": 0})
    message = refused({**values, "batch": 7, "trainer.devices": 2})
    assert "batch=7: not divisible by trainer.devices=2" in message


def test_required_lpips_weights_must_exist(images: Path, tmp_path: Path) -> None:
    values = {**settings(images, tmp_path, "lpips", "vqvae"), "perceptual.required": "true"}
    (tmp_path / "weights").mkdir()
    message = refused(
        {**values, "perceptual.weights_dir": str(tmp_path / "weights"), "perceptual.net": "squeeze"}
    )
    assert "squeezenet1_1" in message
    assert "perceptual.required=false" in message


def test_the_first_process_of_torchrun_does_not_overwrite_a_run(
    trained: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = trained / "checkpoints" / "last.ckpt"
    before = last.read_bytes()
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, "0")
    assert "overwrite=true" in refused(options(trained, images))
    assert last.read_bytes() == before


@pytest.mark.parametrize("precision", ["16-mixed", "64-true"])
def test_other_precisions_are_refused(images: Path, tmp_path: Path, precision: str) -> None:
    message = refused({**settings(images, tmp_path, "half", "vqvae"), "trainer.precision": precision})
    assert f"trainer.precision={precision}" in message
    assert "32-true or bf16-mixed" in message


def test_a_diverged_run_keeps_the_last_good_checkpoint(images: Path, tmp_path: Path) -> None:
    values = settings(images, tmp_path, "diverging", "vqvae", 4)
    folder = run({**values, "trainer.max_steps": 2, "data.epoch_batches": 2})
    before = (folder / "checkpoints" / "last.ckpt").read_bytes()
    with pytest.raises(DivergedError, match=r"smaller stage\.optimizer\.lr"):
        run(
            {
                **{**values, "trainer.max_steps": 8, "data.epoch_batches": 4},
                **{"init_from": str(folder / "checkpoints" / "last.ckpt"), "name": "diverged"},
                **{"stage.optimizer.lr": 1e30, "stage.clip": 0},
            }
        )
    assert (folder / "checkpoints" / "last.ckpt").read_bytes() == before
    assert not list((tmp_path / "diverged").rglob("*.ckpt"))


class Killed(torch.utils.data.Dataset[int]):
    """Kills the process that reads from it, as the system does when it has too little memory."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> int:
        os.kill(os.getpid(), signal.SIGKILL)
        return index


def test_killed_loader_process_ends_the_run_in_one_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    loader = torch.utils.data.DataLoader(Killed(), num_workers=1)
    monkeypatch.setattr("glc.launch.train.train", lambda cfg: list(loader))
    with pytest.raises(SystemExit) as ended:
        entry(DictConfig({}))
    assert ended.value.code == 1
    (record,) = caplog.records
    assert re.fullmatch(
        r"error: a process that loads images was killed \(DataLoader worker .*\); most often the system had "
        r"too little memory: lower data\.num_workers; resume=last continues",
        record.getMessage(),
    )


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_full_disk_ends_the_run_and_keeps_the_previous_checkpoint(
    number: int,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    values = settings(images, tmp_path, "full", "vqvae", 2)
    folder = run({**values, "trainer.max_steps": 1}) if number == errno.ENOSPC else tmp_path
    log = RowLogger.save

    def full(self: RowLogger) -> None:
        if self.experiment.metrics:
            raise OSError(number, os.strerror(number), "metrics.csv")
        log(self)

    monkeypatch.setattr(RowLogger, "save", full)
    with pytest.raises(SystemExit) as caught:
        entry(compose({**values, "resume": "auto"}))
    assert caught.value.code == 1
    assert f"metrics.csv: {os.strerror(number)}: the run's checkpoints are intact" in caplog.text
    assert "resume=last" in caplog.text
    if number == errno.ENOSPC:
        assert checkpoint(folder)["global_step"] == 1
    monkeypatch.undo()
    assert checkpoint(run({**values, "resume": "auto"}))["global_step"] == 2


def test_training_resumes_after_a_time_limit(images: Path, tmp_path: Path) -> None:
    values = {**settings(images, tmp_path, "pieces", "vqvae", 4), "resume": "auto", "max_minutes": 0}
    steps = [checkpoint(run(values))["global_step"] for _ in range(3)]
    assert steps == [1, 2, 3]


def test_changed_settings_are_reported_on_resume(
    trained: Path, images: Path, caplog: pytest.LogCaptureFixture
) -> None:
    steps = checkpoint(trained)["global_step"]
    changed = {
        "resume": "last",
        "trainer.max_steps": steps,
        "stage.codebook_weight": 0.5,
        "callbacks.ema.decay": 0.9,
        "callbacks.codebooks.restart_every": 100,
        "callbacks.last.every_n_steps": 7,  # changes no result
        "callbacks.progress": "null",
    }
    run(options(trained, images, **changed))
    named = [line for record in caplog.records if "another setting" in (line := record.getMessage())]
    assert named == [
        f"resuming with another setting: {difference}"
        for difference in (
            "callbacks.codebooks.restart_every was 500, is 100",
            "callbacks.ema.decay was 0.999, is 0.9",
            "stage.codebook_weight was 1.0, is 0.5",
        )
    ]


def test_a_checkpoint_of_version_0_1_resumes_without_a_warning(
    trained: Path, images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = checkpoint(trained)
    settings = json.dumps(content["glc"]["recipe"])
    for old, new in NAMES_OF_0_1.items():
        settings = settings.replace(f'"{new}"', f'"{old}"')
    assert "glc.training.vqvae.VQVAEStage" in settings
    content["glc"]["recipe"] = json.loads(settings)
    save_checkpoint(content, tmp_path / "old.ckpt")
    more = {"trainer.max_steps": 3, "stage.schedule.total": 2, "data.epoch_batches": 2, "name": "old"}
    states = [
        live_weights(checkpoint(run(options(trained, images, **more, dir=tmp_path / name, resume=path))))
        for name, path in (("a", tmp_path / "old.ckpt"), ("b", trained))
    ]
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    named = [line for record in caplog.records if "another setting" in (line := record.getMessage())]
    assert named == ["resuming with another setting: name was done, is old",
                     "resuming with another setting: trainer.max_steps was 2, is 3"] * 2  # fmt: skip


@pytest.mark.parametrize("stage", ["vqvae", "restoration"])
def test_the_configuration_is_not_changed(images: Path, tmp_path: Path, stage: str) -> None:
    values = settings(images, tmp_path, "frozen", stage, 1)
    if stage == "restoration":
        values["init_from"] = str(fixed_codec_weights(tmp_path / "codec.safetensors"))
    cfg, fresh = compose(values), compose(values)
    OmegaConf.set_readonly(cfg, True)
    train(cfg)
    for resolve in (False, True):
        assert OmegaConf.to_container(cfg, resolve=resolve) == OmegaConf.to_container(fresh, resolve=resolve)


@pytest.fixture
def plain(images: Path, tmp_path: Path) -> dict[str, Any]:
    """Settings of a plain LightningModule, in a user's configuration folder."""
    folder = tmp_path / "conf" / "stage"
    folder.mkdir(parents=True)
    for name, more in (("plain", ""), ("deeper", "previous: plain\n")):
        target = f"module:\n  _target_: tests.training.own.{name.capitalize()}\n"
        (folder / f"{name}.yaml").write_text(f"name: {name}\n{more}{target}")
    values = settings(images, tmp_path / "runs", "own", "plain", 4)
    del values["stage.schedule.warmup"], values["data.batch_size"]
    return {**values, "batch": 2, "data.epoch_batches": 2, "hydra.searchpath": f"[file://{folder.parent}]"}


def test_a_users_lightning_module_resumes_exactly(plain: dict[str, Any]) -> None:
    expected = checkpoint(run(plain))
    pieces = {**plain, "name": "pieces", "resume": "auto", "max_minutes": 0}
    for step in range(1, 5):
        folder = run(pieces)
        assert checkpoint(folder)["global_step"] == step
    resumed = checkpoint(folder)
    for part in ("state_dict", "current_model_state"):
        assert all(torch.equal(value, expected[part][key]) for key, value in resumed[part].items())
    assert resumed["glc"]["recipe"]["stage"]["name"] == "plain"
    loaded = load_stage(folder, trust="tests")
    assert torch.equal(loaded.head.weight, resumed["state_dict"]["head.weight"])


def test_a_users_lightning_module_starts_from_the_previous_stage(plain: dict[str, Any]) -> None:
    first = checkpoint(run(plain))["state_dict"]
    stage, *_ = prepare(compose({**plain, "stage": "deeper"}))
    state = stage.state_dict()
    assert all(torch.equal(state[key], value) for key, value in first.items())
    assert {key.partition(".")[0] for key in state} == {"body", "head", "tail"}


def test_the_network_uses_the_codebook_of_the_first_stage(
    trained: Path, images: Path, tmp_path: Path
) -> None:
    last = trained / "checkpoints" / "last.ckpt"
    source = checkpoint(trained)["state_dict"]["autoencoder.quantizer.embedding"]
    values = settings(images, tmp_path, "network", "transform", 1)
    state = live_weights(checkpoint(run({**values, "model/variants": "refiner", "init_from": str(last)})))
    assert torch.equal(state["model.refiner.quantizer.embedding"], source)
    assert torch.equal(state["quantizer.embedding"], source)


@pytest.mark.parametrize(
    "changes",
    [
        {"trainer.max_steps": 3, "data.epoch_batches": 2},
        {"trainer.max_steps": 2, "data.epoch_batches": 9, "+trainer.limit_train_batches": 5},
        {"trainer.max_steps": 3, "data.epoch_batches": 4, "trainer.val_check_interval": 2},
        {"trainer.max_steps": 2, "data.epoch_batches": 1, "trainer.check_val_every_n_epoch": 3},
        {"trainer.max_steps": -1, "trainer.max_epochs": 2, "data.epoch_batches": 1}
        | {"trainer.check_val_every_n_epoch": 3, "stage.schedule.total": 2},
        {"trainer.max_steps": 2, "data.epoch_batches": 3, "stage.accumulate": 2},
    ],
)
def test_final_weights_are_validated_once(images: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    values = {**settings(images, tmp_path, "final", "vqvae"), **changes}
    objective = entry(compose(values))
    folder = tmp_path / "final" / "vqvae"
    rows = [row for row in figures(folder) if "val/loss" in row]
    last = max(row["step"] for row in figures(folder) if "train/loss" in row)
    assert [row["step"] for row in rows].count(last) == 1
    assert objective == pytest.approx(rows[-1]["val/loss"], rel=1e-6)
    # The figures of the checkpoint are the same, also when there is nothing left to train.
    resumed = entry(compose({**values, "resume": "last"}))
    assert resumed == pytest.approx(objective, rel=1e-6)


@pytest.mark.parametrize("number", ["true", 2])
def test_a_trial_run_writes_nothing(images: Path, tmp_path: Path, number: str | int) -> None:
    values = {**settings(images, tmp_path, "trial", "vqvae", 2), "+trainer.fast_dev_run": number}
    values |= {"logger": "default", "callbacks.last.every_n_steps": 1}
    folder = run(values)
    assert not [path for path in folder.rglob("*") if path.is_file()]
    del values["+trainer.fast_dev_run"]
    run(values)

    def files() -> dict[Path, int]:  # W&B's process may still write its own
        found = (
            path for path in folder.rglob("*") if path.is_file() and path.suffix not in (".log", ".wandb")
        )
        return {path: path.stat().st_mtime_ns for path in found}

    before = files()
    run({**values, "+trainer.fast_dev_run": number, "overwrite": "true"})
    run({**values, "+trainer.fast_dev_run": number})
    assert files() == before


HOLD = """
import sys, time
from pathlib import Path
from glc.io.locks import lock
with lock(Path(sys.argv[1], ".lock")) as held:
    Path(sys.argv[1], "holds").touch()
    time.sleep(200)
"""


@pytest.mark.parametrize("changes", [{"overwrite": "true"}, {"resume": "last"}])
def test_a_run_that_another_process_trains_is_refused(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    values = {**settings(images, tmp_path, "shared", "vqvae", 1), "logger": "default"}
    folder = run(values)
    values |= {"trainer.max_steps": 2, **changes}
    other = Started(["-c", HOLD, folder])
    while not (folder / "holds").exists():
        assert other.running()
    identity = (folder / "wandb-id.txt").read_text()
    with pytest.raises(UsageError, match=f"^{folder}: another process is training this run; wait "):
        run(values)
    assert (folder / "wandb-id.txt").read_text() == identity
    assert checkpoint(folder)["global_step"] == 1
    with monkeypatch.context() as patch:  # another rank of the same run is not refused
        patch.setenv("RANK", "1")
        with run_lock(folder):
            pass
    other.kill()
    assert checkpoint(run({**values, "logger": "csv"}))["global_step"] == 2


@pytest.mark.parametrize("saved", [True, False])
def test_divergence_is_noticed_within_a_log_interval(images: Path, tmp_path: Path, saved: bool) -> None:
    values = settings(images, tmp_path, "nan", "vqvae", 40)
    last = tmp_path / "nan" / "vqvae" / "checkpoints" / "last.ckpt"
    if saved:
        run({**values, "trainer.max_steps": 2})
    values |= {"stage.optimizer.lr": 1e30, "stage.clip": 0, "trainer.log_every_n_steps": 5, "resume": "auto"}
    with pytest.raises(DivergedError) as caught:
        run(values)
    first, *_ = re.findall(r"at step (\d+); ", str(caught.value))
    assert int(first) in ((5, 7) if saved else (5,))
    if saved:
        assert f"; resume={last} has the last good weights; use a smaller " in str(caught.value)
        assert checkpoint(tmp_path / "nan" / "vqvae")["global_step"] == 2
    else:
        assert "; no checkpoint had been saved; start again with a smaller stage." in str(caught.value)


def test_weights_that_are_not_finite_are_not_saved(images: Path, tmp_path: Path) -> None:
    """Loss and gradients of the step are finite, but the learning rate is not sane."""
    values = {**settings(images, tmp_path, "inf", "vqvae", 2), "stage.optimizer.lr": 1e38}
    with pytest.raises(DivergedError, match="the norm of the weights is not finite at step 1"):
        run({**values, "callbacks.last.every_n_steps": 1})
    assert not list(tmp_path.rglob("*.ckpt"))


@pytest.mark.parametrize(
    ("key", "logged"),
    [
        ("trainer.log_every_n_steps", {"val/loss"}),
        ("callbacks.last.every_n_steps", {"train/loss", "val/loss"}),
        ("callbacks.milestones.every_n_train_steps", {"train/loss", "val/loss"}),
        ("callbacks.codebooks.restart_every", {"train/loss", "val/loss"}),
        ("callbacks.panel.images", {"train/loss", "val/loss"}),
        ("callbacks.progress.refresh_rate", {"train/loss", "val/loss"}),
        ("trainer.val_check_interval", {"train/loss"}),
        ("trainer.check_val_every_n_epoch", {"train/loss"}),
        ("trainer.limit_val_batches", {"train/loss"}),
    ],
)
def test_zero_means_never(images: Path, tmp_path: Path, key: str, logged: set[str]) -> None:
    values = {**settings(images, tmp_path, "zero", "vqvae", 3), "data.epoch_batches": 2, key: 0}
    folder = run({**values, "model.projected_codebooks": "false"})
    assert checkpoint(folder)["global_step"] == 3
    assert {name for row in figures(folder) for name in row} & {"train/loss", "val/loss"} == logged
    assert (folder / "panels").exists() == ("val/loss" in logged and key != "callbacks.panel.images")
    assert [path.name for path in (folder / "checkpoints").glob("step*")] == []


def test_accumulating_no_batches_is_refused(images: Path, tmp_path: Path) -> None:
    message = refused({**settings(images, tmp_path, "none", "vqvae"), "stage.accumulate": 0})
    assert message == "stage.accumulate=0: not valid; give an integer of at least 1"


def test_a_metric_without_weights_is_named_once(
    images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    values = {**settings(images, tmp_path, "metric", "vqvae", 2), "metrics": "default"}
    run({**values, "validate_first": "true", "data.epoch_batches": 1})
    (line,) = [text for text in caplog.messages if "is not measured" in text and "val/" in text]
    assert line.startswith("val/lpips_alex is not measured: no weights for alexnet")
    assert "\n" not in line


@pytest.mark.parametrize("mixed", [False, True])
def test_a_hugging_face_data_set_trains_alone_and_in_a_list(
    images: Path, tmp_path: Path, mixed: bool
) -> None:
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"image": [str(path) for path in sorted(images.iterdir())]})
    file = tmp_path / "train.parquet"
    rows.cast_column("image", datasets.Image()).to_parquet(file)
    values = settings(images, tmp_path, "hf", "vqvae", 2)
    del values["data.train"]
    source = f"{{_target_:glc.data.hugging_face.HuggingFaceImages,path:{file}}}"
    given = {"data": "shards", "data.train": f"[{images},{source}]", "data.weights": "[1,3]"}
    values |= given if mixed else {"data": "hf", "data.train.path": file}
    assert explain_overrides(arguments(values)) is None
    assert checkpoint(run(values))["global_step"] == 2
