"""Codebooks in training: k-means initialisation, restart of dead codewords, and histograms of their use.

Both callbacks serve any module that notes what its quantisers saw as `glc.training.stages.base.Stage` does,
and do nothing for others.
"""

from typing import Any

import lightning as L
import numpy as np
import torch
import wandb
from lightning.pytorch.loggers import WandbLogger
from torch import Tensor

from glc.metrics.codebook import CodebookUsage, count_codes
from glc.training.callbacks.ema import MovingAverage

_HANDLED = ("size", "embedding", "initialized", "initialize")
"""What a quantiser must have to be looked after: see `glc.models.quantizer.VectorQuantizer`."""


class CodebookCare(L.Callback):
    """Initialise fresh codebooks by k-means and restart dead codewords, the usual remedies against collapse.

    A codebook that was loaded or trained before is not initialised again (`VectorQuantizer.initialized`). All
    devices pool their vectors and get the same codewords. Quantisers of a user's own that cannot be
    initialised so are left alone.

    Args:
        initialize_after: step at whose end a fresh codebook is placed on the vectors of the batches so
            far by k-means; None never.
        revive_every: steps between restarts; codewords not used since the last one move to random vectors of
            the current batch, each to another. None never. Projected codebooks need no restart.
        max_vectors: vectors kept for the initialisation.
    """

    def __init__(
        self, initialize_after: int | None = 0, revive_every: int | None = None, max_vectors: int = 65536
    ) -> None:
        self.initialize_after = initialize_after
        self.revive_every = revive_every
        self.max_vectors = max_vectors
        self._vectors: dict[str, list[Tensor]] = {}
        self._counts: dict[str, Tensor] = {}
        self._restored: dict[str, dict[str, Tensor]] = {}
        self._started: set[str] = set()
        self._step = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note the step where training starts or resumes, and take this device's share of what was kept."""
        self._step = trainer.global_step
        for name, counts in self._restored.pop("counts", {}).items():
            # Only their sum is ever used.
            self._counts[name] = counts if trainer.is_global_zero else torch.zeros_like(counts)
        for name, vectors in self._restored.pop("vectors", {}).items():
            mine = vectors[trainer.global_rank % len(vectors)]
            self._vectors[name] = [batch.to(pl_module.device) for batch in mine]

    def state_dict(self) -> dict[str, Any]:
        """Return the names under which `on_save_checkpoint` keeps what was seen."""
        return {"counts": {}, "vectors": {}}

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep what all devices saw: the counts since the last restart, and vectors for the initialisation.

        Counts are `[K]`, summed; vectors are `[devices, batches, N, D]`.
        """
        state = checkpoint["callbacks"][self.state_key]
        for name, counts in self._counts.items():
            state["counts"][name] = trainer.strategy.reduce(counts.clone(), reduce_op="sum")
        for name, kept in self._vectors.items():
            state["vectors"][name] = _all_devices(pl_module, torch.stack(kept))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take what was kept; checkpoints from before there were vectors have none."""
        self._restored = {key: dict(state_dict.get(key, {})) for key in ("counts", "vectors")}

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Initialise or restart every codebook that the batch went through, when it is time."""
        # Accumulated batches count, but only the last of a step may move codewords.
        stepped = trainer.global_step != self._step
        self._step = trainer.global_step
        for name, seen in getattr(pl_module, "observations", {}).items():
            quantizer = seen.quantizer
            trained = any(p.requires_grad for p in quantizer.parameters())
            if not trained or not all(hasattr(quantizer, name) for name in _HANDLED):
                continue
            vectors = seen.vectors.permute(0, 2, 3, 1).flatten(0, 2).float()
            if self.initialize_after is not None and not self._has_started(name, quantizer):
                self._collect(name, vectors)
                if stepped and trainer.global_step > self.initialize_after:
                    pooled = _pool(pl_module, torch.cat(self._vectors.pop(name)))
                    quantizer.initialize(pooled, generator=_generator(getattr(pl_module, "seed", 0)))
                    _share(trainer, pl_module, quantizer)
                    self._started.add(name)
            if self.revive_every and getattr(quantizer, "projection", None) is None:
                counts = count_codes(seen.indices, quantizer.size)
                held = self._counts.get(name, torch.zeros_like(counts)).to(counts.device)
                self._counts[name] = held + counts
                if stepped and trainer.global_step % self.revive_every == 0:
                    self._revive(trainer, pl_module, name, quantizer, vectors)

    def _has_started(self, name: str, quantizer: Any) -> bool:
        # Once it has, it is not looked at again: that would wait for a GPU in every step.
        if name not in self._started and quantizer.initialized:
            self._started.add(name)
        return name in self._started

    def _collect(self, name: str, vectors: Tensor) -> None:
        kept = self._vectors.setdefault(name, [])
        kept.append(vectors)
        while len(kept) > 1 and sum(len(v) for v in kept) > self.max_vectors:
            kept.pop(0)

    def _revive(
        self,
        trainer: L.Trainer,
        module: L.LightningModule,
        name: str,
        quantizer: Any,
        vectors: Tensor,
    ) -> None:
        counts = trainer.strategy.reduce(self._counts.pop(name), reduce_op="sum")
        assert isinstance(counts, Tensor)
        dead = (counts == 0).nonzero().flatten()
        pooled = _pool(module, vectors)
        generator = _generator(trainer.global_step)
        # No two codewords to the same vector: of equal ones only the first would ever be chosen.
        number = min(len(dead), len(pooled))
        dead = dead[torch.randperm(len(dead), generator=generator)[:number].to(dead.device)]
        picked = torch.randperm(len(pooled), generator=generator)[:number]
        quantizer.embedding[dead] = pooled[picked.to(pooled.device)].to(quantizer.embedding)
        _share(trainer, module, quantizer, dead)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _pool(module: L.LightningModule, vectors: Tensor) -> Tensor:
    """Return the vectors of all devices `[N, D]`."""
    return _all_devices(module, vectors).reshape(-1, vectors.shape[-1])


def _all_devices(module: L.LightningModule, value: Tensor) -> Tensor:
    """Return a tensor of each device `[devices, ...]`, also where there is only one."""
    gathered = module.all_gather(value)
    assert isinstance(gathered, Tensor)
    return gathered.reshape(-1, *value.shape)


def _share(trainer: L.Trainer, module: L.LightningModule, quantizer: Any, rows: Tensor | None = None) -> None:
    """Give all devices the first one's codewords, and those that moved (all, or some rows) to the EMA too.

    Sums on a GPU differ in their last digits; and the mean of where a codeword was and where it is now is not
    a codeword.
    """
    for name, tensor in [*quantizer.named_parameters(), *quantizer.named_buffers()]:
        if trainer.world_size > 1 and name != "initialized":
            # In place: the strategy's own way would pickle it, and unpack it on the first one's GPU.
            torch.distributed.broadcast(tensor.data, src=0)
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        average: Any = (
            callback.counterpart(module, quantizer) if isinstance(callback, MovingAverage) else None
        )
        if average is not None:
            if rows is None:
                average.load_state_dict(quantizer.state_dict())
            else:
                average.embedding[rows] = quantizer.embedding[rows]


BINS = 256
"""W&B takes at most 512."""


class CodebookHistograms(L.Callback):
    """Send the codewords' frequencies over the validation images to W&B, the most frequent first.

    `val/NAME_histogram` for each codebook: a collapsed one has all its mass at the left. Without a W&B
    logger it does nothing.
    """

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the counts, before the stage forgets them."""
        for key, metric in getattr(pl_module, "usage", {}).items():
            name, _, split = key.rpartition("_")
            if split != "val" or not isinstance(metric, CodebookUsage) or not metric.update_called:
                continue
            # All devices take part in the sum, also those that log nothing.
            counts = trainer.strategy.reduce(metric.counts.clone(), reduce_op="sum")
            assert isinstance(counts, Tensor)
            chart = wandb.Histogram(np_histogram=histogram(counts.cpu().numpy()))
            for logger in trainer.loggers:
                if isinstance(logger, WandbLogger) and trainer.is_global_zero:
                    logged = {f"val/{name}_histogram": chart, "trainer/global_step": trainer.global_step}
                    logger.experiment.log(logged)


def histogram(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return counts in bins and the bins' edges, codewords sorted by how often they were used.

    Args:
        counts: uses of each codeword `[M]`.
    """
    size = len(counts)
    bins = min(BINS, size)
    edges = np.linspace(0, size, bins + 1).round().astype(int)
    ordered = np.sort(counts)[::-1]
    return np.add.reduceat(ordered, edges[:-1]), edges
