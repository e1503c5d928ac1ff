"""Base class of the training stages: optimisation, logging, frozen networks, randomness, checkpoints."""

import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple, Self, cast

import lightning as L
import numpy as np
import torch
from lightning.pytorch.strategies import ParallelStrategy
from torch import Tensor, nn

from glc import fused
from glc.data.stream import images_of
from glc.errors import SettingError, WeightsError
from glc.losses.terms import AddedLosses
from glc.metrics.codebook import CodebookUsage
from glc.metrics.quality import QualityMetrics
from glc.training.checkpoints import count_batches, count_epochs
from glc.training.load import load_stage
from glc.training.networks import trained_networks
from glc.training.optimization import Optimization

__all__ = ["Observation", "Optimization", "Stage"]


log = logging.getLogger(__name__)


class Observation(NamedTuple):
    """Inputs and indices of a quantizer in the current batch, for codebook callbacks."""

    quantizer: nn.Module
    """Has `size`, the number of codewords; usually a `glc.models.quantizer.VectorQuantizer`."""
    vectors: Tensor
    """`[B, D, H, W]`, without gradient."""
    indices: Tensor
    """`[B, H, W]`."""


class Stage(L.LightningModule):
    """Base of the stages. A stage sets the class attributes below and defines two methods:

    ```
    training_step:    forward -> loss terms -> optimize(total) -> log_terms("train", terms)
    validation_step:  forward -> log_terms("val", terms), log_quality(x, x_hat) -> {name: images}
    ```

    Optimisation is manual in all stages, so that one batch is one step with one or two optimizers. All
    randomness within a step is a function of the seed, the step and the rank: a resumed run samples the same
    numbers as an uninterrupted one.

    Args:
        optimization: optimizers and schedule.
        losses: additional losses of the configuration, by name. The stage defines their inputs: images x and
            x_hat, or latents.
        quality: metrics of validation reconstructions.
        seed: of the randomness within steps.
        channels_last: keep weights and images in channels-last memory (faster convolutions).
        compile: compile the networks with `torch.compile`.
    """

    frozen: tuple[str, ...] = ()
    """Submodules that are never trained: no gradients, and in evaluation mode even after `train()`."""

    needs: tuple[str, ...] = ()
    """Submodules that `init_from` must provide."""

    compiled: tuple[str, ...] = ()
    """Submodules to compile."""

    discriminator: str | None = None
    """The submodule trained by the second optimizer; None without an adversarial loss."""

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
        """Codebook name to its inputs and indices in the current batch."""
        self.usage = nn.ModuleDict()
        """`NAME_train` and `NAME_val` to the usage of a codebook since it was last logged."""
        self.qualities = nn.ModuleDict()
        """`val` + suffix of the logged names to the metrics of the current validation."""
        self._val_terms: set[str] = set()
        self._named_unavailable = False
        self.position = 0
        """Batches on this device so far, over all epochs."""
        self.accumulated = 0
        """Batches of the current step before the current one."""
        self.passes = 1
        """Batches of the current step: `accumulate`, or fewer at the end of an epoch."""

    # Networks -------------------------------------------------------------------------------------

    def missing(self, loaded: list[str]) -> list[str]:
        """Return the required networks that `init_from` did not provide.

        Args:
            loaded: names of the networks that were loaded.
        """
        return [name for name in self.needs if name not in loaded]

    def on_weights_loaded(self, loaded: list[str]) -> None:
        """Derive weights from those of another stage; called once, when a run starts (not on resume).

        Args:
            loaded: names of the networks that were loaded from `init_from`.
        """

    def setup(self, stage: str) -> None:
        """Freeze, apply the memory format and compile, after the weights are loaded."""
        for name in self.frozen:
            self.get_submodule(name).requires_grad_(False).eval()
        if self.channels_last:
            self.to(memory_format=torch.channels_last)
        if self.compile_networks and stage == "fit":
            for name in self.compiled:
                self.get_submodule(name).compile()
        elif stage == "fit":
            fused.fuse(self)

    def train(self, mode: bool = True) -> "Stage":
        """Set the mode; frozen networks stay in evaluation mode."""
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
        """Create the optimizers of the networks and of the discriminator, each with the schedule."""
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
            loss: of all networks together, because plain DDP supports one backward pass per batch.
            batch_idx: position of the batch in the epoch.
        """
        if self.trainer.world_size > 1:
            # DDP waits for a gradient of every parameter, also of those unused in this batch (a weight of 0,
            # or rate points that are not in the batch).
            loss = loss + sum(0.0 * p.sum() for p in self.parameters() if p.requires_grad)
        done = self.accumulated + 1
        if done < self.passes and not self.trainer.is_last_batch:
            # Gradients are exchanged once per step; until then each device accumulates its own.
            with self._without_synchronisation():
                self.manual_backward(loss / self.passes)
            return
        self.manual_backward(loss / self.passes)
        counted = self.optimizers()
        counted = counted if isinstance(counted, list) else [counted]
        # Only the first uses Lightning's wrapper, which counts steps: two would count each step twice.
        raw = [optimizer.optimizer for optimizer in counted]
        if done < self.passes:  # the data ended, and their length was unknown
            for parameter in self.parameters():
                if parameter.grad is not None:
                    parameter.grad *= self.passes / done
        self._log_norms()
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

    def _log_norms(self) -> None:
        """Log the norms of gradients (before clipping) and weights per network, for the next logged row."""
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        # A row is logged at multiples of `every`, also between the steps of accumulated batches.
        until = self.position + self.optimization.accumulate - 1
        if not every or (self.global_step and until // every == (self.position - 1) // every):
            return
        for name, parameters in trained_networks(self).items():
            gradients = [p.grad for p in parameters if p.grad is not None]
            weights = [p.detach() for p in parameters]
            for kind, tensors in (("grad_norm", gradients), ("weight_norm", weights)):
                self.log(f"train/{kind}/{name}", nn.utils.get_total_norm(tensors))

    def _without_synchronisation(self) -> AbstractContextManager[Any]:
        strategy = self.trainer.strategy
        # Other strategies do not reduce gradients and have no such method.
        return strategy.block_backward_sync() if isinstance(strategy, ParallelStrategy) else nullcontext()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seed the randomness of this batch."""
        self.position = count_batches(self.trainer)
        accumulate = self.optimization.accumulate
        self.accumulated = batch_idx % accumulate
        left = self.trainer.num_training_batches - batch_idx + self.accumulated  # inf if unknown
        self.passes = int(min(accumulate, left))
        # Modulo, because torch accepts 64-bit seeds only.
        number = ((self.seed * 1_000_003 + self.position) * 65_537 + self.global_rank) % 2**64
        torch.manual_seed(number)
        # glc does not use these two generators; custom code may.
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

    @contextmanager
    def unlogged(self) -> Iterator[dict[str, Tensor]]:
        """Collect the mean of each term that is logged within the context; nothing is logged or counted."""
        terms: dict[str, Tensor] = {}

        def collect(split: str, values: Mapping[str, Tensor], batch_size: int) -> None:
            terms.update({name: value.detach().float().mean() for name, value in values.items()})

        methods = dict.fromkeys(("log_quality", "observe", "log_files"), lambda *_: None)
        replaced = {"log_terms": collect, **methods}
        self.__dict__.update(replaced)
        try:
            yield terms
        finally:
            for name in replaced:
                del self.__dict__[name]

    def log_quality(self, x: Tensor, x_hat: Tensor, suffix: str = "") -> None:
        """Update the quality metrics, which are logged as `val/NAME` + suffix after validation.

        Args:
            x: images `[B, 3, H, W]` in [-1, 1].
            x_hat: their reconstructions.
            suffix: of the logged names, such as `/2` for rate point 2.
        """
        if self.quality is None:
            return
        key = f"val{suffix}"  # a ModuleDict rejects an empty name
        if key not in self.qualities:
            self.qualities[key] = self.quality.empty_copy().to(self.device)
        cast(QualityMetrics, self.qualities[key]).update(x, x_hat)

    def observe(self, name: str, quantizer: nn.Module, vectors: Tensor, indices: Tensor) -> None:
        """Record inputs and indices of a quantizer, for usage metrics and for callbacks.

        Args:
            name: of the codebook in the logs.
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
                for measure, value in metric.compute().items():
                    self.log(f"{split}/{name}_{measure}", value)
                metric.reset()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Log the codebooks' usage since it was last logged."""
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and (batch_idx == 0 or (batch_idx + 1) % every == 0):
            self._log_usage("train")

    def on_train_epoch_end(self) -> None:
        """Correct the epoch counter; callbacks that save run after this."""
        count_epochs(self.trainer)

    def on_validation_start(self) -> None:
        """Say once which metrics are not measured because their weights are missing."""
        if self.quality is not None and not self._named_unavailable and self.trainer.is_global_zero:
            self._named_unavailable = True
            for name, reason in self.quality.unavailable.items():
                log.warning("val/%s is not measured: %s", name, " ".join(reason.split()))

    def on_validation_epoch_end(self) -> None:
        """Log and reset the metrics of the validation images and the codebooks' usage over them."""
        for key, quality in self.qualities.items():
            assert isinstance(quality, QualityMetrics)
            # `compute` reduces over all devices, so names and values are the same on each.
            for name, value in quality.compute().items():
                logged = f"{name}{key.removeprefix('val')}"
                if logged in self._val_terms:
                    raise SettingError(
                        f"metrics.metrics.{name}: a loss term has the same name; rename the metric"
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
            trust: packages, besides that of this class, whose classes the checkpoint may name.
            **given: constructor arguments that replace the recorded ones.

        Raises:
            WeightsError: the checkpoint cannot be read, has another class, or names an untrusted class.
        """
        package = cls.__module__.partition(".")[0]
        own = [] if package == "glc" else [package]
        stage = load_stage(checkpoint_path, [*own, *([trust] if isinstance(trust, str) else trust)], **given)
        if not isinstance(stage, cls):
            raise WeightsError(f"{checkpoint_path}: holds a {type(stage).__name__}, not a {cls.__name__}")
        return stage if map_location is None else stage.to(map_location)
