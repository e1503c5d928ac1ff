"""Lightning's counters, as a run has them that was never interrupted.

A checkpoint that was saved when an epoch ended is continued by ending that epoch a second time, without a
batch. Two counters take that for an epoch and a batch of their own (tried with Lightning 2.6): the data would
skip an epoch, and every logged step would be called one more than it is.
"""

import lightning as L
from lightning.pytorch.loops.progress import _ProcessedTracker


def count_batches(trainer: L.Trainer) -> int:
    """Return the batches that this device has seen, over all epochs, with the current one; correct the log's.

    Call it when a batch starts.
    """
    loop = trainer.fit_loop.epoch_loop
    loop._batches_that_stepped = loop.total_batch_idx
    return loop.total_batch_idx + 1


def count_epochs(trainer: L.Trainer) -> None:
    """Let no more epochs be over than began. Call it when an epoch ends, before anything is saved."""
    progress = trainer.fit_loop.epoch_progress
    for tracker in (progress.total, progress.current):
        assert isinstance(tracker, _ProcessedTracker)
        tracker.processed = min(tracker.processed, tracker.started)
