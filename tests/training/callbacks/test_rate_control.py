"""Lambda follows the size of real files, in a simulation and in short runs."""

import logging
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.trainer.states import TrainerFn

from glc.codec.weights.export import read_codec
from glc.errors import SettingError
from glc.training.callbacks.rate_control import RateControl
from glc.training.stages.codec import CodecStage
from tests.short_runs import checkpoint, figures, run, settings, write_images


class Simulated(CodecStage):
    """A codec whose files have `size * lambda ** power` bits per pixel."""

    def __init__(self, lmbda: list[float], size: float, power: float) -> None:
        torch.nn.Module.__init__(self)
        self.register_buffer("lmbda", torch.tensor(lmbda))
        self.register_buffer("share", torch.ones(len(lmbda)))
        self.balance = True
        self.validate_files = 4
        self.size, self.power = size, power
        self.__dict__["model"] = SimpleNamespace(num_rates=len(lmbda))

    def validate_rate(self, x: Any, rate_index: int) -> Any:
        raise NotImplementedError

    def sizes(self) -> torch.Tensor:
        return self.size * self.lmbda**self.power


def validate(control: RateControl, stage: Simulated, **found: float) -> None:
    metrics: dict[str, Any] = {f"val/file_bpp/{k}": v for k, v in enumerate(stage.sizes())}
    metrics |= {f"val/file_bpp_estimate/{k}": v * 0.9 for k, v in enumerate(stage.sizes())}
    trainer: Any = SimpleNamespace(
        callback_metrics={**metrics, **found},
        state=SimpleNamespace(fn=TrainerFn.FITTING),
        sanity_checking=False,
        is_global_zero=True,
    )
    control.on_validation_end(trainer, stage)


def started(control: RateControl, stage: Any) -> RateControl:
    control.on_train_start(SimpleNamespace(), stage)  # type: ignore[arg-type]
    return control


def test_one_change_by_hand(caplog: pytest.LogCaptureFixture) -> None:
    stage = Simulated([4.0, 9.0], size=0.01, power=0.5)  # 0.02 and 0.03 bpp
    control = started(RateControl([0.025, 0.012], gain=0.5, max_factor=1.4), stage)
    with caplog.at_level(logging.INFO):
        validate(control, stage)
    wanted = [4 * 1.25**0.5, 9 / 1.4]  # (0.012 / 0.03) ** 0.5 is below 1 / 1.4
    assert stage.lmbda.tolist() == pytest.approx(wanted)
    assert stage.share.tolist() == pytest.approx([sum(wanted) / 2 / value for value in wanted])
    assert (
        "rate point 0: files 0.02000 bpp (estimate 0.01800), target 0.02500: lambda 4 -> 4.47" in caplog.text
    )


def test_sizes_converge_to_the_target_without_overshoot() -> None:
    stage = Simulated([1.0, 1.0, 50.0], size=0.02, power=0.4)
    control = started(RateControl(0.03), stage)
    found = [stage.sizes()]
    for _ in range(25):
        validate(control, stage)
        found.append(stage.sizes())
    torch.testing.assert_close(found[-1], torch.full((3,), 0.03), rtol=1e-3, atol=0)
    sizes = torch.stack(found)
    assert (sizes[:, 0].diff() >= -1e-7).all()
    assert (sizes[:, 2].diff() <= 1e-7).all()


def test_sizes_that_were_not_measured_leave_lambda() -> None:
    stage = Simulated([4.0, 9.0], size=0.01, power=0.5)
    control = started(RateControl(0.05), stage)
    validate(control, stage, **{"val/file_bpp/1": math.nan})
    assert stage.lmbda.tolist() == pytest.approx([6.0, 9.0])


def test_settings_out_of_range_are_refused() -> None:
    for given in (0.0, [0.1, -1.0], math.inf):
        with pytest.raises(SettingError, match=r"target_bpp=.*: give numbers above 0"):
            RateControl(given)
    with pytest.raises(SettingError, match=r"got gain=1\.0, max_factor=1"):
        RateControl(0.1, max_factor=1)
    stage = Simulated([1.0] * 4, 0.1, 0.5)
    with pytest.raises(SettingError, match=r"target_bpp: 3 values for 4 rate points; give one, or 4"):
        started(RateControl([0.1] * 3), stage)
    with pytest.raises(SettingError, match="Module has no rate; use it with stage=transform or stage=joint"):
        started(RateControl(0.1), torch.nn.Module())
    stage.validate_files = 0
    with pytest.raises(SettingError, match=r"give stage\.validate_files=4"):
        started(RateControl(0.1), stage)


def test_a_run_moves_lambda_resumes_and_exports_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used = []
    total = CodecStage.total

    def recorded(self: CodecStage, coding: Any, distortion: Any, lmbda: torch.Tensor, *more: Any) -> Any:
        if self.training:
            used.append(set(lmbda.tolist()))
        return total(self, coding, distortion, lmbda, *more)

    monkeypatch.setattr(CodecStage, "total", recorded)
    images = write_images(tmp_path / "images", count=3, side=96)
    values = {
        **settings(images, tmp_path / "runs", "held", "transform", steps=4),
        "init_from": "none",
        "callbacks": "rate_control",
        "callbacks.rate_control.target_bpp": "[1e-4,100,1e-4,100]",  # below and above what files can have
        "stage.lmbda": "[1.0,2.0,3.0,4.0]",
        "trainer.val_check_interval": 2,
        "validate_first": "true",
    }
    folder = run(values)
    # The first validation changes them by the largest factor; `last.ckpt` is saved before the second.
    after = [1 / 1.5, 2 * 1.5, 3 / 1.5, 4 * 1.5]
    rows = [row for row in figures(folder) if "val/lmbda/0" in row]
    assert [row["val/lmbda/1"] for row in rows] == pytest.approx([2.0, 3.0])
    assert set().union(*used[:2]) <= {1.0, 2.0, 3.0, 4.0}
    assert all(min(abs(value - a) for a in after) < 1e-5 for value in set().union(*used[-2:]))
    saved = checkpoint(folder)
    assert saved["glc"]["lmbda"] == pytest.approx(after)
    assert [rate["lmbda"] for rate in read_codec(folder).rates] == pytest.approx(after)
    row = rows[-1]
    for k in range(4):  # an estimate of the same images, without the file's header
        assert row[f"val/file_bpp/{k}"] > row[f"val/file_bpp_estimate/{k}"] > 0

    more = {"trainer.max_steps": 6, "resume": "last", "data.epoch_batches": 4}
    run({**values, **more})
    resumed = [row for row in figures(folder, 1) if "val/lmbda/0" in row]
    assert resumed[0]["val/lmbda/1"] == pytest.approx(after[1])
