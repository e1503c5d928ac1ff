"""Train the stages on two forked processes: a separate program, because forking needs a fresh process.

python -m tests.training.two_ranks IMAGES FOLDER
"""

import sys
from pathlib import Path
from typing import Any

import lightning as L
import torch

from tests.short_runs import STAGES, run, settings
from tests.training.one_step import update

STEPS = 3
# Parameters without a gradient in some or all steps: DDP waits for a gradient of each.
UNEVEN = {
    "network": {"model/variants": "refiner"},
    "indices": {"model/variants": "indices_map", "data.batch_size": 1},
    "logged": {"stage.distortion_weights.code_ce": 0, "stage.weights.codebook": 0},
}


class Probe(L.Callback):
    """Record each rank's batches and final weights."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self.seen: list[float] = []

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Record the batch; save the weights after the last step."""
        self.seen.append(float(batch.x.double().mean()))
        if trainer.global_step == STEPS:
            kept = {"seen": self.seen, "weights": pl_module.state_dict()}
            torch.save(kept, self.folder / f"rank-{trainer.global_rank}.pt")


def main(images: Path, folder: Path) -> None:
    """Train the stages for a few steps, then do one step of stage II without randomness."""
    torch.set_num_threads(1)
    runs: dict[str, dict[str, Any]] = {stage: {"stage": stage} for stage in STAGES}
    runs |= {name: {"stage": "transform", **changes} for name, changes in UNEVEN.items()}
    for name, changes in runs.items():
        stage = changes["stage"]
        options = {
            **settings(images, folder, "ranks", stage, STEPS),
            "dir": str(folder / "ranks" / name),
            "data.val_limit": 3,  # not divisible by two
            "trainer.devices": 2,
            "trainer.strategy": "ddp_fork",
            "model.projected_codebooks": "false",
            "callbacks.codebooks.restart_every": 2,
            "callbacks.last.every_n_steps": 2,
            "+callbacks.probe._target_": "tests.training.two_ranks.Probe",
            "+callbacks.probe.folder": str(folder / "ranks" / name),
            # The discriminator starts in the middle, to cover steps with and without it.
            **({} if stage == "transform" else {"stage.discriminator_start": 1}),
            **changes,
        }
        run(options)
    torch.save(update(folder, "transform", batch=2, devices=2), folder / "update.pt")
    accumulated = update(folder, "transform", batch=1, devices=2, accumulate=2)
    torch.save(accumulated, folder / "accumulated.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
