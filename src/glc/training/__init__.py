"""Training with PyTorch Lightning: stages, callbacks, checkpoints."""

from glc.training.load import load_stage

__all__ = ["load_stage"]
