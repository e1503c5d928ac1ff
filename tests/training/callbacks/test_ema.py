from pathlib import Path

import lightning as L
import pytest
import torch
from torch import nn

from glc.training.callbacks.ema import EMA
from tests.short_runs import checkpoint, figures, live_weights, run, settings, write_images


class Moving(L.LightningModule):
    """One weight that is 1, 2, 3, ... after each step, beside one that never changes."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.moving = nn.Parameter(torch.zeros(()))
        self.still = nn.Parameter(torch.randn(512), requires_grad=False)

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        self.optimizers().step()
        with torch.no_grad():
            self.moving += 1

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([self.moving], lr=1.0)


def test_unchanged_weights_keep_their_exact_values(tmp_path) -> None:
    module = Moving()
    still = module.still.clone()
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=300,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        callbacks=[EMA(decay=0.9)],
    )
    trainer.fit(module, torch.utils.data.DataLoader(torch.zeros(300), batch_size=1))
    # a_1 = 1, a_t = 0.9 a_(t-1) + 0.1 t, which tends to t - 9; it replaces the weights at the end.
    assert module.moving.item() == pytest.approx(300 - 9, abs=1e-3)
    assert torch.equal(module.still, still)


class Rearranged(L.LightningModule):
    """Changes its memory format in `setup`, as the stages do, after the average was created."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 6, 3)

    def setup(self, stage: str) -> None:
        self.to(memory_format=torch.channels_last)


def test_average_has_the_memory_format_of_the_weights() -> None:
    module, average = Rearranged(), EMA(decay=0.9)
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    average.setup(trainer, module, "fit")
    module.setup("fit")
    average.on_fit_start(trainer, module)
    kept = average.counterpart(module, module.conv)
    assert isinstance(kept, nn.Conv2d)
    assert kept.weight.stride() == module.conv.weight.stride() == (36, 1, 12, 4)
    assert torch.equal(kept.weight, module.conv.weight)
    assert kept.weight.data_ptr() != module.conv.weight.data_ptr()


@pytest.mark.parametrize("decay", [-0.1, 1.0, 1.5])
def test_decay_out_of_range_is_refused(decay: float) -> None:
    with pytest.raises(ValueError, match=r"callbacks\.ema\.decay"):
        EMA(decay)


def test_live_weights_are_validated_beside_the_average_without_a_trace(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images")

    def train(name: str, **changes: str) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
        values = {**settings(images, tmp_path, name, "transform", steps=3), "init_from": "none"}
        folder = run({**values, **{f"callbacks.ema.{key}": value for key, value in changes.items()}})
        (row,) = (row for row in figures(folder) if "val/loss" in row)
        return row, live_weights(checkpoint(folder))

    plain, weights = train("plain", decay="0.9")
    both, same = train("both", decay="0.9", validate_live="true")
    # The rest of the row and the training are those of a run without it.
    live = both.pop("val/loss_live")
    assert both == plain
    assert all(torch.equal(weights[name], same[name]) for name in weights)
    assert live != pytest.approx(both["val/loss"], rel=1e-6)
    # With decay 0 the average is the live weights.
    equal, _ = train("equal", decay="0", validate_live="true")
    assert equal["val/loss_live"] == pytest.approx(equal["val/loss"], rel=1e-6)
