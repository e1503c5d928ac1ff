"""One deterministic optimizer step on one or more processes, for comparing batch splits."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra.utils import instantiate
from torch import Tensor
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from glc.data.stream import ImageBatch
from glc.training.stages.base import Optimization, Stage
from glc.training.stages.transform import TransformStage
from tests.short_runs import compose, settings


class FixedRates(TransformStage):
    """Stage II with rate points that depend only on the images, so that batches can be split anywhere."""

    def sample_rates(self, x: Tensor) -> Tensor:
        """Return rate points derived from the images."""
        return (x.mean((1, 2, 3)) * 1e4).round().long() % self.model.num_rates


class Batches(torch.utils.data.Dataset[ImageBatch]):
    """The images in batches; each rank takes every other batch."""

    def __init__(self, images: Tensor, size: int) -> None:
        self.batches = images.split(size)

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> ImageBatch:
        x = self.batches[index]
        return ImageBatch(x, [str(index)] * len(x))


class Unsized(torch.utils.data.IterableDataset[ImageBatch]):
    """A data set without a length."""

    def __init__(self, batches: Batches) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[ImageBatch]:
        """Yield all batches."""
        return (self.batches[i] for i in range(len(self.batches)))


class CountedReductions(L.Callback):
    """Append a dot to a file for each gradient reduction."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Register a hook in the DDP wrapper."""

        def counted(state, bucket):  # type: ignore[no-untyped-def]  # DDP inspects annotations
            with self.path.open("a") as file:
                file.write(".")
            return allreduce_hook(state, bucket)

        trainer.model.register_comm_hook(None, counted)  # type: ignore[union-attr,operator]


def four_images() -> Tensor:
    """Return images with four different rate points."""
    coarse = torch.rand(64, 3, 4, 4, generator=torch.Generator().manual_seed(3)) * 2 - 1
    x = torch.nn.functional.interpolate(coarse, size=(64, 64), mode="bicubic").clamp(-1, 1)
    rates = FixedRates.sample_rates(type("", (), {"model": type("", (), {"num_rates": 4})}), x)  # type: ignore
    chosen = torch.stack([x[rates == k][0] for k in range(4)])
    return chosen[[2, 0, 3, 1]]


def update(
    folder: Path,
    name: str,
    batch: int,
    accumulate: int = 1,
    devices: int = 1,
    first: int = 4,
    balance: bool = False,
    sized: bool = True,
) -> dict[str, Tensor]:
    """Return the change of each weight in one step of plain gradient descent.

    Args:
        folder: for the trainer's files.
        name: stage, `vqvae` or `transform`.
        batch: images per batch.
        accumulate: batches per step.
        devices: processes.
        first: number of images to use, of four.
        balance: see `CodecStage`.
        sized: whether the length of the data is known.
    """
    options = settings(folder, folder, "one-step", name)
    torch.manual_seed(0)
    module = compose(options).stage.module
    if name == "transform":
        module._target_ = f"{__name__}.FixedRates"
        module.noise = False
        module.balance = balance
    else:
        module.adversarial.weight = 0
    stage: Stage = instantiate(module)
    stage.optimization = Optimization(_descent, _full_rate, clip=0, accumulate=accumulate)
    before = {key: value.clone() for key, value in stage.state_dict().items()}
    trainer = L.Trainer(
        accelerator="cpu",
        devices=devices,
        strategy="ddp_fork" if devices > 1 else "auto",
        callbacks=[CountedReductions(folder / f"reductions-{batch}x{accumulate}")] if devices > 1 else [],
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    data: Any = Batches(four_images()[:first], batch)
    trainer.fit(stage, torch.utils.data.DataLoader(data if sized else Unsized(data), batch_size=None))
    assert devices > 1 or trainer.global_step == 1  # forked processes have their own counters
    return {key: value.detach().float() - before[key].float() for key, value in stage.state_dict().items()}


def _descent(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=1.0)


def _full_rate(step: int) -> float:
    return 1.0


def difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """Return the norm of the difference of two updates, relative to the first."""
    assert a.keys() == b.keys()
    apart = sum((a[key].double() - b[key].double()).square().sum() for key in a)
    return float((apart / sum(value.double().square().sum() for value in a.values())) ** 0.5)
