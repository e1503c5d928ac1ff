"""What all training stages share: optimisation, logging, frozen networks, randomness, checkpoints."""

import random
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple, Self, cast

import lightning as L
import numpy as np
import torch
from lightning.pytorch.strategies import ParallelStrategy
from torch import Tensor, nn

from glc.data.stream import images_of
from glc.errors import SettingError, WeightsError
from glc.losses.terms import AddedLosses
from glc.metrics.codebook import CodebookUsage
from glc.metrics.quality import QualityMetrics
from glc.training.checkpoints import count_batches, count_epochs
from glc.training.load import load_stage
from glc.training.optimization import Optimization

__all__ = ["Observation", "Optimization", "Stage"]


class Observation(NamedTuple):
    """What a quantiser saw in the current batch, for callbacks that look after codebooks."""

    quantizer: nn.Module
    """Has `size`, the number of codewords; a `glc.models.quantizer.VectorQuantizer` unless a user's own."""
    vectors: Tensor
    """`[B, D, H, W]`, without gradient."""
    indices: Tensor
    """`[B, H, W]`."""


class Stage(L.LightningModule):
    """Base of the stages. A stage declares its networks below and defines two methods:

    ```
    training_step:    forward -> loss terms -> optimize(total) -> log_terms("train", terms)
    validation_step:  forward -> log_terms("val", terms), log_quality(x, x_hat) -> {name: images}
    ```

    Optimisation is manual in all stages, so that one batch is one step with one or two optimizers. All
    randomness within a step is a function of the seed, the step and the rank: a resumed run draws the
    same numbers as one that was never interrupted.

    Args:
        optimization: how to optimise.
        losses: losses that the configuration adds to the stage's own, by name. What they compare is up to the
            stage: images x and x_hat, or latents.
        quality: metrics of validation reconstructions.
        seed: of the randomness within steps.
        channels_last: keep weights and images in channels-last memory (faster convolutions).
        compile: compile the networks with `torch.compile`.
    """

    frozen: tuple[str, ...] = ()
    """Submodules that are never trained: no gradients, and in evaluation mode whatever `train()` says."""

    needs: tuple[str, ...] = ()
    """Submodules that `init_from` must provide."""

    compiled: tuple[str, ...] = ()
    """Submodules to compile."""

    discriminator: str | None = None
    """The submodule that is trained by the second optimizer; None without an adversarial loss."""

    def __init__(
        self,
        optimization: Optimization,
        losses: Mapping[str, nn.Module | None] | None = None,
        quality: QualityMetrics | None = None,
        seed: int = 0,
        channels_last: bool = False,
        compile: bool = False,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.optimization = optimization
        self.losses = AddedLosses(losses)
        self.quality = quality
        self.seed = seed
        self.channels_last = channels_last
        self.compile_networks = compile
        self.observations: dict[str, Observation] = {}
        """Codebook name to what it saw in the current batch."""
        self.usage = nn.ModuleDict()
        """`NAME_train` and `NAME_val` to the usage of a codebook since it was last logged."""
        self.qualities = nn.ModuleDict()
        """`val` + suffix of the log's names to the metrics of the current validation."""
        self._val_terms: set[str] = set()
        self.position = 0
        """Batches seen by this device, over all epochs."""
        self.accumulated = 0
        """Batches of the current step before the current one."""

    # Networks -------------------------------------------------------------------------------------

    def missing(self, loaded: list[str]) -> list[str]:
        """Return the networks that `init_from` had to provide and did not.

        Args:
            loaded: names of the networks that were loaded.
        """
        return [name for name in self.needs if name not in loaded]

    def on_weights_loaded(self, loaded: list[str]) -> None:
        """Derive weights from those of another stage; called once, when a run starts and is not resumed.

        Args:
            loaded: names of the networks that `init_from` gave.
        """

    def setup(self, stage: str) -> None:
        """Freeze, apply the memory format and compile, once the weights are in place."""
        for name in self.frozen:
            self.get_submodule(name).requires_grad_(False).eval()
        if self.channels_last:
            self.to(memory_format=torch.channels_last)
        if self.compile_networks and stage == "fit":
            for name in self.compiled:
                self.get_submodule(name).compile()

    def train(self, mode: bool = True) -> "Stage":
        """Switch the mode; frozen networks stay in evaluation mode."""
        super().train(mode)
        for name in self.frozen:
            self.get_submodule(name).eval()
        return self

    def images(self, batch: Any) -> Tensor:
        """Return the images `[B, 3, H, W]` of a batch in the memory format of the networks."""
        x = images_of(batch)
        return x.contiguous(memory_format=torch.channels_last) if self.channels_last else x

    # Optimisation ---------------------------------------------------------------------------------

    def configure_optimizers(self) -> Any:
        """Make one optimizer for the networks and one for the discriminator, each with the schedule."""
        parameters = dict(self.named_parameters())
        networks = {name: p for name, p in parameters.items() if p.requires_grad}
        frozen = {name: p for name, p in parameters.items() if not p.requires_grad}
        second = [
            name for name in networks if self.discriminator and name.startswith(self.discriminator + ".")
        ]
        return self.optimization.make(networks, {name: networks.pop(name) for name in second}, frozen)

    def optimize(self, loss: Tensor, batch_idx: int) -> None:
        """Accumulate the gradient of a loss; at the end of a step, clip it and update the weights.

        Args:
            loss: of all networks together. One backward pass per batch is what plain DDP supports.
            batch_idx: position of the batch in the epoch.
        """
        accumulate = self.optimization.accumulate
        if self.trainer.world_size > 1:
            # DDP waits for a gradient of every parameter, also of one that a weight of 0 or the rate points
            # of this batch leave out.
            loss = loss + sum(0.0 * p.sum() for p in self.parameters() if p.requires_grad)
        if (batch_idx + 1) % accumulate and not self.trainer.is_last_batch:
            # Devices talk once per step; until then each adds to its own gradient.
            with self._without_synchronisation():
                self.manual_backward(loss / accumulate)
            return
        self.manual_backward(loss / accumulate)
        counted = self.optimizers()
        counted = counted if isinstance(counted, list) else [counted]
        # Only the first goes through Lightning's wrapper, which counts steps: one batch is one step.
        raw = [optimizer.optimizer for optimizer in counted]
        names = ("grad_norm", "grad_norm_discriminator")
        for i, (optimizer, name) in enumerate(zip(raw, names, strict=False)):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            norm = nn.utils.clip_grad_norm_(parameters, self.optimization.clip or float("inf"))
            self.log(f"train/{name}", norm)
            (counted[0] if i == 0 else optimizer).step()
            optimizer.zero_grad()
        schedulers = self.lr_schedulers()
        for scheduler in schedulers if isinstance(schedulers, list) else [schedulers]:
            scheduler.step()  # type: ignore[union-attr]

    def _without_synchronisation(self) -> AbstractContextManager[Any]:
        strategy = self.trainer.strategy
        # Without a gradient to reduce, no wrapper has a switch for it.
        return strategy.block_backward_sync() if isinstance(strategy, ParallelStrategy) else nullcontext()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seed the randomness of this batch."""
        self.position = count_batches(self.trainer)
        self.accumulated = batch_idx % self.optimization.accumulate
        # Large seeds would be more than torch takes.
        number = ((self.seed * 1_000_003 + self.position) * 65_537 + self.global_rank) % 2**64
        torch.manual_seed(number)
        # Nothing here draws from these two; what a user adds may.
        random.seed(number)
        np.random.seed(number % 2**32)  # noqa: NPY002 (the global state is the point)

    # Logging --------------------------------------------------------------------------------------

    def log_terms(self, split: str, terms: Mapping[str, Tensor], batch_size: int) -> None:
        """Log the mean of each named term as `split/name`."""
        if split == "val":
            self._val_terms.update(terms)
        for name, value in terms.items():
            self.log(
                f"{split}/{name}",
                value.detach().float().mean(),
                batch_size=batch_size,
                sync_dist=split == "val",
                prog_bar=name in ("loss", "psnr"),
            )

    def log_quality(self, x: Tensor, x_hat: Tensor, suffix: str = "") -> None:
        """Count reconstructions into the metrics, which are logged as `val/NAME` + suffix after validation.

        Args:
            x: images `[B, 3, H, W]` in [-1, 1].
            x_hat: their reconstructions.
            suffix: keeps reconstructions apart, such as `/2` for rate point 2.
        """
        if self.quality is None:
            return
        key = f"val{suffix}"  # a ModuleDict takes no empty name
        if key not in self.qualities:
            self.qualities[key] = self.quality.empty_copy().to(self.device)
        cast(QualityMetrics, self.qualities[key]).update(x, x_hat)

    def observe(self, name: str, quantizer: nn.Module, vectors: Tensor, indices: Tensor) -> None:
        """Note what a quantiser saw, for the figures of its usage and for callbacks.

        Args:
            name: of the codebook in the log.
            quantizer: has `size`, the number of codewords.
            vectors: `[B, D, H, W]`.
            indices: `[B, H, W]`.
        """
        self.observations[name] = Observation(quantizer, vectors.detach(), indices)
        key = f"{name}_{'train' if self.training else 'val'}"
        if key not in self.usage:
            self.usage[key] = CodebookUsage(cast(int, quantizer.size)).to(self.device)
        cast(CodebookUsage, self.usage[key]).update(indices)

    def _log_usage(self, split: str) -> None:
        for key, metric in self.usage.items():
            name, _, owner = key.rpartition("_")
            if owner == split and isinstance(metric, CodebookUsage) and metric.update_called:
                for figure, value in metric.compute().items():
                    self.log(f"{split}/{name}_{figure}", value)
                metric.reset()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Log the codebooks' usage since the last time."""
        if batch_idx == 0 or (batch_idx + 1) % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self._log_usage("train")

    def on_train_epoch_end(self) -> None:
        """Count epochs; callbacks that save come after this."""
        count_epochs(self.trainer)

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of the validation images and the codebooks' usage over them; forget both."""
        for key, quality in self.qualities.items():
            assert isinstance(quality, QualityMetrics)
            # Equal on all devices, and so are the names: `compute` has talked to all of them.
            for name, value in quality.compute().items():
                logged = f"{name}{key.removeprefix('val')}"
                if logged in self._val_terms:
                    raise SettingError(
                        f"metrics.metrics.{name}: a loss term has this name; rename the metric"
                    )
                self.log(f"val/{logged}", value)
            quality.reset()
        self._log_usage("val")

    # Checkpoints ----------------------------------------------------------------------------------

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls,
        checkpoint_path: str | Path,
        map_location: Any = None,
        *,
        trust: str | Sequence[str] = (),
        **given: Any,
    ) -> Self:
        """Return a stage of this class with its weights, in evaluation mode; see `glc.training.load_stage`.

        Args:
            checkpoint_path: a checkpoint or the folder of a run.
            map_location: device of the stage; None for the CPU.
            trust: further packages whose classes the checkpoint may name; that of this class may always be.
            **given: constructor arguments that replace the recorded ones.

        Raises:
            WeightsError: the checkpoint cannot be read, is another class's, or names what is not trusted.
        """
        package = cls.__module__.partition(".")[0]
        own = [] if package == "glc" else [package]
        stage = load_stage(checkpoint_path, [*own, *([trust] if isinstance(trust, str) else trust)], **given)
        if not isinstance(stage, cls):
            raise WeightsError(f"{checkpoint_path}: of a {type(stage).__name__}, not of a {cls.__name__}")
        return stage if map_location is None else stage.to(map_location)
