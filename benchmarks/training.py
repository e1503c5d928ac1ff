"""Images per second of a training step of each stage, against a plain loop in float32.

The baseline is a plain loop: matrix products in float32, eager, contiguous memory format, AdamW not fused
(convolutions may use TF32 on a GPU). Images are noise in memory; discriminator, LPIPS (random weights), EMA
and codebook statistics are active from the first step. The first three steps of a run are not counted. On a
GPU, `waits per step` counts the synchronisations of a step; their source lines are printed on stderr.
"""

import argparse
import logging
import sys
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn

from benchmarks.readings import Benchmark, Clock, Reading
from glc.codec.weights.export import make_tables, rate_points
from glc.codec.weights.file import Weights
from glc.data.stream import ImageBatch
from glc.launch.train import quieten, register_resolvers
from glc.layers.frozen import Frozen
from glc.losses.perceptual import LPIPS

ROOT = Path(__file__).resolve().parent.parent
WARM = 3
SIDES: dict[str, tuple[str, ...]] = {
    "plain": ("stage.optimizer.fused=null",),
    "bfloat16": ("trainer.precision=bf16-mixed",),
    "bfloat16, channels-last": ("trainer.precision=bf16-mixed", "stage.channels_last=true"),
    "compiled too": ("trainer.precision=bf16-mixed", "stage.channels_last=true", "stage.compile=true"),
}


class RandomLPIPS(LPIPS):
    """LPIPS with a random backbone: times do not depend on weights."""

    def __init__(self, net: str = "vgg", **_: Any) -> None:
        import lpips

        nn.Module.__init__(self)
        self.precision = "float32"
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=UserWarning, module="torchvision")
            self.network = Frozen(lpips.LPIPS(pretrained=False, pnet_rand=True, net=net, verbose=False))


class _Stop(L.Callback):
    """Times the steps after the warm-up."""

    def __init__(self, device: torch.device, steps: int) -> None:
        self.device, self.steps = device, steps
        self.reading: Reading | None = None
        self.waits: dict[str, float] = {}

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Start or read the clock."""
        if self.device.type == "cuda" and batch_idx + 1 == WARM - 1:
            # One step before the clock starts (a warning is slow), and not the first, which logs.
            torch.cuda.set_sync_debug_mode("warn")
            self.caught = warnings.catch_warnings(record=True)
            self.warned = self.caught.__enter__()
            warnings.simplefilter("always")
        elif batch_idx + 1 == WARM:
            if self.device.type == "cuda":
                torch.cuda.set_sync_debug_mode("default")
                self.caught.__exit__(None, None, None)
                waits = [w for w in self.warned or [] if "synchroniz" in str(w.message)]
                self.waits = {"waits per step": float(len(waits))}
                places = sorted({f"{w.filename}:{w.lineno}" for w in waits})
                print("\n".join(places), file=sys.stderr)
            self.clock = Clock(self.device)
        elif batch_idx + 1 == WARM + self.steps:
            self.reading = self.clock.reading(self.steps * len(batch.x), **self.waits)


def benchmarks(args: argparse.Namespace) -> Iterator[Benchmark]:
    """Return one benchmark per stage."""
    on_gpu = args.device.type != "cpu"
    model = args.model or ("natural" if args.full else "small")
    big = args.full or on_gpu
    # A step of the paper's models takes minutes on a CPU.
    crop, batch, steps = (256, 8, 20) if on_gpu else (256, 1, 2) if args.full else (128, 4, 3)
    names = list(SIDES)[: len(SIDES) if on_gpu else 3]
    for stage in args.stages.split(","):
        given = [f"stage={stage}", f"model={model}", f"perceptual.net={'vgg' if big else 'squeeze'}"]
        if stage != "transform":
            given.append("stage.discriminator_start=0")
        sides = {
            name: partial(step, (*given, *SIDES[name]), crop, batch, steps, args.device, args.threads)
            for name in names
        }
        about = f"model={model}, batches of {batch}, crops of {crop}. `plain`: float32, eager."
        yield Benchmark(f"training_{stage}", "image", about, sides)


def _codec(cfg: DictConfig) -> Weights:
    """Return a codec with random weights, for a stage that trains a part of a finished one."""
    OmegaConf.resolve(cfg.model)
    networks = {name: cfg.model[name] for name in ("encoder", "decoder", "coder", "refiner")}
    description = OmegaConf.to_container(OmegaConf.create({"_target_": "glc.models.glc.GLC", **networks}))
    model = instantiate(description)
    return Weights(model, description, make_tables(model), rate_points(model), "0" * 64)


def step(
    overrides: tuple[str, ...], crop: int, batch: int, steps: int, device: torch.device, threads: int
) -> Reading:
    """Measure one side of a stage."""
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision("high" if "trainer.precision=bf16-mixed" in overrides else "highest")
    register_resolvers()
    quieten()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        shared = ["data=samples", "metrics=none", f"batch={batch}", "++perceptual.required=true"]
        cfg = compose("train", [*shared, *overrides, "dir=none", "hydra.run.dir=none"])
    cfg.perceptual = {"_target_": "benchmarks.training.RandomLPIPS", "net": cfg.perceptual.net}
    L.seed_everything(0, verbose=False)
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    make = instantiate(cfg.stage.module, _partial_=True)
    stage = make(codec=_codec(cfg)) if cfg.stage.get("codec") else make()
    stop = _Stop(device, steps)
    settings = {key: value for key, value in cfg.trainer.items() if key != "plugins"}
    settings |= {
        "max_steps": WARM + steps,
        "accelerator": device.type,
        "limit_val_batches": 0,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "logger": False,
    }
    kept = [instantiate(cfg.callbacks[name]) for name in ("ema", "codebooks")]
    trainer = instantiate(settings, callbacks=[*kept, stop])
    images = torch.rand(4 * batch, 3, crop, crop) * 2 - 1
    batches = [ImageBatch(x, [""] * batch) for x in images.split(batch)]
    loader = torch.utils.data.DataLoader(
        batches * (WARM + steps), batch_size=None, pin_memory=device.type == "cuda"
    )
    trainer.fit(stage, loader)
    assert stop.reading is not None
    return stop.reading
