"""Evaluate codecs: instantiate a composed configuration and measure.

```
glc eval codec=mine.safetensors testset=folder testset.path=IMAGES out=results/mine
```
"""

import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf

from glc.codec.weights.catalog import find
from glc.evaluation.codecs.base import CodecUnavailable, ImageCodec
from glc.evaluation.codecs.latent import LatentCodec
from glc.evaluation.evaluate import Evaluation
from glc.jobs.run import UNFINISHED, PartFinished, UnfinishedError
from glc.launch.config import UsageError
from glc.launch.failures import UNUSABLE, usage_error
from glc.launch.overrides import command_line
from glc.launch.schema import conform
from glc.metrics.quality import QualityMetrics

log = logging.getLogger(__name__)

# The folder of a metric's weights does not affect its values.
NOT_RECORDED = ("weights_dir",)


MakeCodec = Callable[[str], ImageCodec]
"""Makes a codec on a device; picklable, so that other processes can make it too."""


def make_codec(config: Mapping[str, Any], device: str) -> ImageCodec:
    """Instantiate an entry of `codecs`; a key `device` is set to the process's device."""
    placed = {**config, "device": device} if "device" in config else config
    return instantiate(placed, _convert_="all")


def make_metrics(config: Mapping[str, Any], omitted: Sequence[str]) -> QualityMetrics:
    """Instantiate the metrics except `omitted`; at module level, so that other processes can call it."""
    entries = {name: entry for name, entry in config["metrics"].items() if name not in omitted}
    return instantiate({**config, "metrics": entries})


def codec_makers(cfg: DictConfig) -> dict[str, MakeCodec]:
    """Return a maker for each codec of the configuration, by the name of its folder.

    Raises:
        UsageError: a codec is unknown, or settings conflict.
    """
    asked = [str(name) for name in cfg.codec] if isinstance(cfg.codec, ListConfig) else [str(cfg.codec)]
    if not asked:
        raise UsageError(f"codec=[]: empty; give a weights file or one of {', '.join(cfg.codecs)}")
    if cfg.qualities is not None and cfg.target_bpp is not None:
        raise UsageError("qualities: cannot be combined with target_bpp; give one of them")
    if cfg.qualities is not None and len(asked) > 1:
        raise UsageError(
            "qualities: units differ between codecs; give codecs.NAME.qualities= for each, or target_bpp="
        )
    points: dict[str, Any] = {}
    for key in ("qualities", "target_bpp"):
        if cfg[key] is not None:
            points = {"qualities": None, "target_bpp": None}
            points[key] = list(cfg[key]) if isinstance(cfg[key], ListConfig) else [cfg[key]]
    makers: dict[str, MakeCodec] = {}
    for name in asked:
        if name in cfg.codecs:
            config = OmegaConf.to_container(cfg.codecs[name], resolve=True)
            assert isinstance(config, dict)
            maker: MakeCodec = partial(
                make_codec, {str(key): value for key, value in config.items()} | points
            )
        else:
            try:
                model = find(name).resolve()
            except ValueError as error:
                raise UsageError(f"codec={name}: {error}; or one of {', '.join(cfg.codecs)}") from error
            folder = cfg.metrics.get("weights_dir")
            steps = cfg.optimize_latent
            optimization = {"optimize_latent": steps, "weights_dir": folder} if steps else {}
            maker = partial(LatentCodec, str(model), **optimization, **points)
            name = model.stem
        if name in makers:
            raise UsageError(f"codec: two codecs have the name {name}; evaluate each into its own out=")
        makers[name] = maker
    return makers


def weights_of(cfg: DictConfig) -> dict[str, Path]:
    """Return the weights file of each codec that has one, by the codec's name."""
    asked = [str(name) for name in (cfg.codec if isinstance(cfg.codec, ListConfig) else [cfg.codec])]
    files = [find(name).resolve() for name in asked if name not in cfg.codecs]
    return {file.stem: file for file in files}


def prepare(cfg: DictConfig, shards: Sequence[str] = ()) -> dict[str, Evaluation]:
    """Return the evaluations of a composed configuration, by the name of the codec.

    Args:
        cfg: the configuration.
        shards: shards to evaluate on instead of `testset.path`: files, folders, patterns.

    Raises:
        UsageError: a setting is missing or conflicts with another.
    """
    if shards:
        cfg = cast(DictConfig, OmegaConf.merge(cfg, {"testset": {"path": list(shards)}}))
    missing = OmegaConf.missing_keys(cfg)
    for key in ("codec", "out", "testset.path"):
        if key in missing:
            raise UsageError(f"{key}: no value; give {key}=...")
    if cfg.wandb and any(find_spec(name) is None for name in ("wandb", "lightning")):
        raise UsageError("wandb=true: packages not installed; run pip install 'glc-codec[train]'")
    testset = instantiate(cfg.testset, _convert_="all")
    for name, reason in testset.missing:
        log.warning("%s: %s", name, reason)
    metrics: Any = OmegaConf.to_container(cfg.metrics, resolve=True)
    device: Any = list(cfg.device) if isinstance(cfg.device, ListConfig) else str(cfg.device)
    several = isinstance(cfg.codec, ListConfig)
    return {
        name: Evaluation(
            out=Path(cfg.out, name) if several else Path(cfg.out),
            images=testset,
            make_codec=maker,
            make_metrics=partial(make_metrics, metrics),
            metrics=[name for name, entry in metrics["metrics"].items() if entry is not None],
            protocol=_recorded(metrics),
            device=device,
            processes=cfg.processes,
            threads=cfg.threads,
            engine=cfg.engine,
            ray_cpus=cfg.ray_cpus,
            ray_gpus=0 if cfg.ray_gpus is None and device == "cpu" else cfg.ray_gpus,
            ray_memory=None if cfg.ray_memory is None else int(cfg.ray_memory * 1e9),
            part=(0, 1) if cfg.part is None else tuple(cfg.part),
            seed=cfg.seed,
            overwrite=cfg.overwrite,
            keep=cfg.keep,
        )
        for name, maker in codec_makers(cfg).items()
    }


def _recorded(config: Any) -> Any:
    if isinstance(config, dict):
        return {key: _recorded(value) for key, value in config.items() if key not in NOT_RECORDED}
    return config


def evaluate(cfg: DictConfig, shards: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Run a composed configuration (`glc.launch.compose("evaluate", [...])`); return each codec's summary.

    Args:
        cfg: the configuration.
        shards: shards to evaluate on instead of `testset.path`: files, folders, patterns.

    Raises:
        UsageError: the configuration cannot be run; the message says what to change.
    """
    cfg = conform(cfg, "evaluate")
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
    summaries = []
    named: dict[str, str] = {}
    try:
        for name, evaluation in prepare(cfg, shards).items():
            summary = evaluation.run()
            unavailable = {k: v for k, v in summary["unavailable"].items() if named.get(k) != v}
            named |= unavailable
            log.info("%s", table({**summary, "unavailable": unavailable}))
            log.info("%s: results in %s", name, evaluation.out)
            if cfg.wandb:
                from glc.launch.lineage import log_evaluation

                weights = weights_of(cfg).get(name)
                log_evaluation(summary, evaluation.out, cfg.wandb_project, weights, cfg.wandb_artifacts)
            summaries.append(summary)
    except (*UNUSABLE, CodecUnavailable) as error:
        raise usage_error(error, cfg) from error
    return summaries


def table(summary: Mapping[str, Any]) -> str:
    """Return a summary's rate points, problems and failures as lines of text."""
    points = summary["points"]
    keys = list(dict.fromkeys(key for point in points for key in point if key not in ("setting", "label")))
    lines = [[summary["codec"]["name"], *keys]]
    lines += [[point["label"], *(_number(point.get(key)) for key in keys)] for point in points]
    widths = [max(len(line[k]) for line in lines) for k in range(len(keys) + 1)]
    text = ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
    text += [f"unavailable: {name}: {_short(reason)}" for name, reason in summary["unavailable"].items()]
    text += [f"incomplete: {name}: {reason}" for name, reason in summary["incomplete"].items()]
    text += [
        f"failed: {entry['image']}{', ' + entry['label'] if 'label' in entry else ''}: {entry['reason']}"
        for entry in summary["failed"]
    ]
    return "\n".join(text)


def _short(reason: str, length: int = 90) -> str:
    return reason if len(reason) <= length else f"{reason[:length]}... (see summary.json)"


def _number(value: Any) -> str:
    return "-" if value is None else str(value) if isinstance(value, int) else f"{value:.4f}"


def main(arguments: Sequence[str] | None = None, shards: Sequence[str] = ()) -> None:
    """Command line entry; `arguments` None: `sys.argv`; `shards` as in `evaluate`."""

    def run(cfg: DictConfig) -> None:
        try:
            summaries = evaluate(cfg, shards)
        except PartFinished as done:
            log.info("%s", done)
            return
        except (UsageError, RuntimeError) as error:
            log.error("error: %s", error)
            codes = {UsageError: 2, UnfinishedError: UNFINISHED}
            raise SystemExit(codes.get(type(error), 1)) from error
        if any(summary["failed"] for summary in summaries):
            raise SystemExit(1)

    command_line(run, "evaluate", arguments)


if __name__ == "__main__":
    main()
