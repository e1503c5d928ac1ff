"""What a training run says at its start and at its end."""

from collections.abc import Iterable
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ProgressBar
from omegaconf import DictConfig
from torch import nn

from glc.io import threads_policy
from glc.launch.start import Start
from glc.training.networks import NETWORKS, own_networks, trained_networks

FOLLOWING = {"vqvae": "transform", "transform": "joint"}
"""The stage that usually follows a stage."""
REPORTED = ("val/loss", "val/bpp", "val/psnr", "val/ms_ssim", "val/lpips_alex")
"""Figures that the last line of a run shows."""


def opening(
    cfg: DictConfig,
    stage: L.LightningModule,
    datamodule: L.LightningDataModule,
    trainer: L.Trainer,
    start: Start,
) -> str:
    """Return the block that a run logs at its start: one line per topic."""
    devices = trainer.num_devices * trainer.num_nodes
    steps = [f"{cfg.trainer.max_epochs} epochs"] if (cfg.trainer.max_epochs or 0) > 0 else []
    steps += [f"{cfg.trainer.max_steps} steps"] if cfg.trainer.max_steps > 0 else []
    batch = f"{cfg.batch} images per step" if "batch" in cfg else "as the data module says"
    rows = {
        "run": str(cfg.dir),
        "device": f"{devices} x {trainer.strategy.root_device.type}, precision {cfg.trainer.precision}, "
        f"seed {cfg.seed}",
        "threads": f"{torch.get_num_threads()}, waiting: {threads_policy.description()}",
        "networks": networks(stage),
        "data": str(datamodule.describe()) if hasattr(datamodule, "describe") else type(datamodule).__name__,
        "batch": f"{batch}, {' or '.join(steps)}",
        "start": origin(start),
    }
    return "\n".join(f"{name + ':':<10}{value}" for name, value in rows.items())


def networks(stage: nn.Module) -> str:
    """Return the number of parameters of each network, those that are trained first."""
    frozen = {path.rpartition(".")[2] for path in getattr(stage, "frozen", ())}
    trained = trained_networks(stage).keys() - frozen
    shown: dict[str, str] = {}
    for path in [*NETWORKS, *(path for path in NETWORKS.values() if path), *own_networks(stage)]:
        try:
            parameters = list(stage.get_submodule(path).parameters())
        except AttributeError:
            continue
        if parameters:
            count = sum(parameter.numel() for parameter in parameters)
            shown.setdefault(
                path.rpartition(".")[2], f"{count / 1e6:.1f} M" if count >= 1e6 else f"{count:,}"
            )
    listed = {
        kind: ", ".join(f"{name} {count}" for name, count in shown.items() if (name in trained) == is_trained)
        for kind, is_trained in (("trained", True), ("not trained", False))
    }
    return "; ".join(f"{kind}: {names}" for kind, names in listed.items() if names)


def origin(start: Start) -> str:
    """Return what a run starts from, in words."""
    if start.resume is not None:
        return f"resumes {start.resume.path} at step {start.resume.step}"
    if start.codec is not None:
        return f"the codec {start.codec.source}"
    if not start.sources:
        return "new weights"
    return "weights of " + ", ".join(_source(source) for source in start.sources)


def _source(source: Any) -> str:
    checkpoint = source.checkpoint
    return str(source.path) if checkpoint is None else f"{source.path} (step {checkpoint.step})"


def closing(cfg: DictConfig, step: int, seconds: float, metrics: dict[str, float]) -> str:
    """Return the lines that a complete run logs at its end: folder, time, figures and the next command."""
    figures = ", ".join(f"{name} {metrics[name]:.4g}" for name in REPORTED if name in metrics)
    minutes, rest = divmod(round(seconds), 60)
    return (
        f"complete: {cfg.dir}, step {step}, {minutes} min {rest} s{'; ' if figures else ''}{figures}\n"
        f"next: {following(cfg)}"
    )


def following(cfg: DictConfig) -> str:
    """Return the command that usually follows a stage: the next stage, or the export."""
    name = str(cfg.stage.name)
    if name in FOLLOWING:
        return f"glc train stage={FOLLOWING[name]} name={cfg.name} ... (model and data as in this run)"
    return f"glc export {cfg.dir} {cfg.name}.safetensors"


def without_bar(callbacks: Iterable[L.Callback]) -> list[L.Callback]:
    """Return the callbacks that are not progress bars."""
    return [callback for callback in callbacks if not isinstance(callback, ProgressBar)]
