"""Codebooks in training: k-means initialisation, dead-code restart, and histograms of codebook usage.

Both callbacks work with any module that records its quantizers' inputs as `glc.training.stages.base.Stage`
does, and do nothing for others.
"""

from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor

from glc.metrics.codebook import CodebookUsage, count_codes
from glc.training.callbacks.ema import EMA
from glc.training.loggers import log_histogram

_HANDLED = ("size", "embedding", "initialized", "initialize")
"""Attributes that `CodebookRestart` needs of a quantizer: see `glc.models.quantizer.VectorQuantizer`."""


class CodebookRestart(L.Callback):
    """Initialise new codebooks by k-means and restart dead codewords, against codebook collapse.

    A codebook that was loaded or trained before is not initialised again (`VectorQuantizer.initialized`). All
    devices pool their vectors and get the same codewords. Custom quantizers without the attributes for it are
    skipped.

    Args:
        initialize_after: step after which a new codebook is initialised by k-means on the vectors of the
            batches so far; None for never.
        restart_every: steps between restarts: codewords not used since the last restart move to distinct
            random vectors of the current batch. None for never. Only codewords that are parameters restart:
            not those of a projected codebook or of finite scalar quantisation.
        max_vectors: vectors kept for the initialisation.
    """

    def __init__(
        self, initialize_after: int | None = 0, restart_every: int | None = None, max_vectors: int = 65536
    ) -> None:
        self.initialize_after = initialize_after
        self.restart_every = restart_every
        self.max_vectors = max_vectors
        self._vectors: dict[str, list[Tensor]] = {}
        self._counts: dict[str, Tensor] = {}
        self._restored: dict[str, dict[str, Tensor]] = {}
        self._started: set[str] = set()
        self._step = 0

    @property
    def state_key(self) -> str:
        """Key of the state in checkpoints, that of version 0.1, whose checkpoints can be resumed."""
        return "CodebookCare"

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Record the first step, and restore this device's share of the saved counts and vectors."""
        self._step = trainer.global_step
        for name, counts in self._restored.pop("counts", {}).items():
            # Only the sum over devices is used.
            self._counts[name] = counts if trainer.is_global_zero else torch.zeros_like(counts)
        for name, vectors in self._restored.pop("vectors", {}).items():
            mine = vectors[trainer.global_rank % len(vectors)]
            self._vectors[name] = [batch.to(pl_module.device) for batch in mine]

    def state_dict(self) -> dict[str, Any]:
        """Return the empty entries that `on_save_checkpoint` fills."""
        return {"counts": {}, "vectors": {}}

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Save the counts since the last restart and the vectors for the initialisation, of all devices.

        Counts are summed, `[K]`; vectors are `[devices, batches, N, D]`.
        """
        state = checkpoint["callbacks"][self.state_key]
        for name, counts in self._counts.items():
            state["counts"][name] = trainer.strategy.reduce(counts.clone(), reduce_op="sum")
        for name, kept in self._vectors.items():
            state["vectors"][name] = _all_devices(pl_module, torch.stack(kept))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load counts and vectors; older checkpoints have no vectors."""
        self._restored = {key: dict(state_dict.get(key, {})) for key in ("counts", "vectors")}

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Initialise or restart every codebook used by the batch, at their periods."""
        # Accumulated batches are counted, but codewords move only after the last batch of a step.
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
            if self.restart_every and quantizer.embedding.requires_grad:
                counts = count_codes(seen.indices, quantizer.size)
                held = self._counts.get(name, torch.zeros_like(counts)).to(counts.device)
                self._counts[name] = held + counts
                if stepped and trainer.global_step % self.restart_every == 0:
                    self._restart(trainer, pl_module, name, quantizer, vectors)

    def _has_started(self, name: str, quantizer: Any) -> bool:
        # Cached, because reading `initialized` from a GPU at every step would synchronise.
        if name not in self._started and quantizer.initialized:
            self._started.add(name)
        return name in self._started

    def _collect(self, name: str, vectors: Tensor) -> None:
        kept = self._vectors.setdefault(name, [])
        kept.append(vectors)
        while len(kept) > 1 and sum(len(v) for v in kept) > self.max_vectors:
            kept.pop(0)

    def _restart(
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
        # Distinct vectors: of equal codewords only the first would ever be chosen.
        number = min(len(dead), len(pooled))
        dead = dead[torch.randperm(len(dead), generator=generator)[:number].to(dead.device)]
        picked = torch.randperm(len(pooled), generator=generator)[:number]
        quantizer.embedding[dead] = pooled[picked.to(pooled.device)].to(quantizer.embedding)
        _share(trainer, module, quantizer, dead)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _pool(module: L.LightningModule, vectors: Tensor) -> Tensor:
    """Return the vectors of all devices, `[N, D]`."""
    return _all_devices(module, vectors).reshape(-1, vectors.shape[-1])


def _all_devices(module: L.LightningModule, value: Tensor) -> Tensor:
    """Return the tensors of all devices, `[devices, ...]`, also for one device."""
    gathered = module.all_gather(value)
    assert isinstance(gathered, Tensor)
    return gathered.reshape(-1, *value.shape)


def _share(trainer: L.Trainer, module: L.LightningModule, quantizer: Any, rows: Tensor | None = None) -> None:
    """Broadcast rank 0's codewords, and copy those that moved (all, or `rows`) to the EMA.

    Broadcast, because sums on GPUs differ in their last digits. Copied, because the average of a codeword's
    old and new position is not a codeword.
    """
    for name, tensor in [*quantizer.named_parameters(), *quantizer.named_buffers()]:
        if trainer.world_size > 1 and name != "initialized":
            # In place: strategy.broadcast would pickle the tensor and unpickle it on rank 0's GPU.
            torch.distributed.broadcast(tensor.data, src=0)
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        average: Any = callback.counterpart(module, quantizer) if isinstance(callback, EMA) else None
        if average is not None:
            if rows is None:
                average.load_state_dict(quantizer.state_dict())
            else:
                average.embedding[rows] = quantizer.embedding[rows]


BINS = 256
"""W&B accepts at most 512 bins."""


class CodebookHistograms(L.Callback):
    """Log the codewords' frequencies over the validation images, the most frequent first (not in MLflow).

    `val/NAME_histogram` for each codebook: a collapsed one has all its mass at the left.
    """

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the counts before the stage resets them."""
        for key, metric in getattr(pl_module, "usage", {}).items():
            name, _, split = key.rpartition("_")
            if split != "val" or not isinstance(metric, CodebookUsage) or not metric.update_called:
                continue
            # A collective: all ranks must call it, also those that log nothing.
            counts = trainer.strategy.reduce(metric.counts.clone(), reduce_op="sum")
            assert isinstance(counts, Tensor)
            for logger in trainer.loggers if trainer.is_global_zero else ():
                binned = histogram(counts.cpu().numpy())
                log_histogram(logger, f"val/{name}_histogram", *binned, trainer.global_step)


def histogram(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return binned counts and the bin edges, codewords sorted by descending count.

    Args:
        counts: of each codeword, `[M]`.
    """
    size = len(counts)
    bins = min(BINS, size)
    edges = np.linspace(0, size, bins + 1).round().astype(int)
    ordered = np.sort(counts)[::-1]
    return np.add.reduceat(ordered, edges[:-1]), edges
