"""The values that the keys of the configuration accept, and their check.

`KEYS` names plain keys, `ARGUMENTS` the arguments of a class or function wherever it is instantiated. Keys in
neither table are not checked, nor are sections whose `_target_` is the user's own.
"""

import copy
import re
from collections.abc import Iterator
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

from omegaconf import Container, DictConfig, Node, OmegaConf
from omegaconf.errors import InterpolationToMissingValueError, OmegaConfBaseException

from glc.launch.config import UsageError
from glc.launch.values import (
    BATCHES,
    BOOLEAN,
    COUNT,
    DEVICES,
    INDEX,
    LIST,
    NAMES,
    NULL,
    NUMBER,
    POSITIVE,
    RANGE,
    SCHEDULE,
    SHARE,
    SOURCES,
    TEXT,
    WEIGHT,
    Accepted,
    choice,
    integer,
    one_of,
    optional,
    sequence,
    shown,
)

_TRAINER = {
    "accelerator": choice("auto", "cpu", "gpu", "cuda", "mps", "tpu"),
    "devices": DEVICES,
    "num_nodes": COUNT,
    "precision": replace(
        choice("32-true", "bf16-mixed"),
        fix=" (float16 needs gradient scaling, which discriminator and gradient clipping do not support)",
    ),
    "max_steps": integer(-1),
    "min_steps": optional(INDEX),
    "max_epochs": optional(integer(-1)),
    "min_epochs": optional(INDEX),
    "check_val_every_n_epoch": optional(INDEX),
    "limit_train_batches": optional(BATCHES),
    "limit_val_batches": optional(BATCHES),
    "limit_test_batches": optional(BATCHES),
    "limit_predict_batches": optional(BATCHES),
    "overfit_batches": BATCHES,
    "num_sanity_val_steps": optional(integer(-1)),
    "log_every_n_steps": optional(INDEX),
    "fast_dev_run": one_of(BOOLEAN, COUNT),
    "sync_batchnorm": BOOLEAN,
    "inference_mode": BOOLEAN,
    "benchmark": optional(BOOLEAN),
    "deterministic": optional(one_of(BOOLEAN, choice("warn"))),
    "detect_anomaly": BOOLEAN,
    "barebones": BOOLEAN,
    "enable_model_summary": optional(BOOLEAN),
    "enable_progress_bar": optional(BOOLEAN),
    "enable_checkpointing": optional(BOOLEAN),
    "enable_autolog_hparams": BOOLEAN,
    "use_distributed_sampler": BOOLEAN,
    "reload_dataloaders_every_n_epochs": INDEX,
    "accumulate_grad_batches": replace(integer(1, 1), text="the batches per step as stage.accumulate="),
    "gradient_clip_val": replace(NULL, text="the maximum norm as stage.clip="),
    "gradient_clip_algorithm": replace(NULL, text="the maximum norm as stage.clip="),
}
TRAINER_ARGUMENTS = frozenset(_TRAINER) | {
    *("callbacks", "default_root_dir", "logger", "max_time", "model_registry", "plugins", "profiler"),
    *("strategy", "val_check_interval"),
}
"""Arguments of Lightning's Trainer."""

_NETWORK = {
    **dict.fromkeys(("latent_channels", "channels", "num_blocks", "stem", "fine_channels"), COUNT),
    **dict.fromkeys(("size", "dim", "codebook_size", "width", "heads", "layers", "grid", "num_rates"), COUNT),
    **dict.fromkeys(("depth", "fine_blocks"), INDEX),
    **dict.fromkeys(("level_attention", "out_activation", "projection", "checkpointing"), BOOLEAN),
    **dict.fromkeys(("projected", "normalize", "bounded"), BOOLEAN),
    "levels": optional(sequence(integer(2))),
    "multipliers": sequence(COUNT),
    "sizes": sequence(COUNT),
    "window": optional(COUNT),
    "scale_bound": POSITIVE,
}

ARGUMENTS: dict[str, dict[str, Accepted]] = {
    "lightning.Trainer": _TRAINER,
    "glc.models.": _NETWORK,
    "glc.models.discriminator.PatchDiscriminator": {"channels": COUNT, "layers": COUNT},
    "glc.data.module.ImageDataModule": {
        "crop": one_of(COUNT, SCHEDULE),
        **dict.fromkeys(("batch_size", "epoch_batches", "stride", "accumulate"), COUNT),
        **dict.fromkeys(("val_crop", "val_batch_size", "val_limit"), optional(COUNT)),
        **dict.fromkeys(("num_workers", "shuffle", "seed"), INDEX),
        **dict.fromkeys(("min_scale", "max_scale"), POSITIVE),
        "open_timeout": WEIGHT,
        **dict.fromkeys(("flip", "cache", "scale_batch"), BOOLEAN),
        "weights": optional(sequence(POSITIVE)),
        "member": optional(replace(TEXT, text="the suffix of a file, such as jpg or mask.png")),
        "glc_model": optional(replace(TEXT, text="a model's name, its weights file, or auto")),
        "augment": optional(replace(LIST, text="a list of mappings, [{_target_: TRANSFORM, ...}]")),
        "background": TEXT,
        **dict.fromkeys(
            ("train", "val"), replace(SOURCES, text="a folder, shards, a list of images, or a list of them")
        ),
    },
    "glc.data.hugging_face.HuggingFaceImages": {
        **dict.fromkeys(("path", "split"), TEXT),
        **dict.fromkeys(("column", "name", "revision"), optional(TEXT)),
        "streaming": BOOLEAN,
    },
    "glc.data.degradations.GaussianNoise": {"sigma": RANGE},
    "glc.data.degradations.Blur": {"sigma": RANGE},
    "glc.data.degradations.JPEG": {"quality": RANGE},
    "glc.data.degradations.Downsample": {"factor": RANGE},
    "glc.data.degradations.Mask": {"share": RANGE, "boxes": SHARE, "canvas": COUNT},
    "glc.losses.": {
        **dict.fromkeys(("weight", "beta", "lecam"), WEIGHT),
        "start": INDEX,
        "channels": COUNT,
        "policy": sequence(choice("colour", "translation", "cutout")),
        "required": BOOLEAN,
        "net": choice("vgg", "alex", "squeeze"),
        "precision": choice("float32", "autocast"),
        "floor": POSITIVE,
        "crop": replace(POSITIVE, text="a number above 0 and at most 1"),
        "weights_dir": optional(TEXT),
    },
    "glc.losses.reconstruction.load_perceptual": {"augment": BOOLEAN},
    "glc.metrics.": {"eight_bit": BOOLEAN, "size": COUNT, "weights_dir": optional(TEXT)},
    "glc.training.schedule.WarmupCosine": {
        "warmup": INDEX,
        "total": COUNT,
        **dict.fromkeys(("hold", "floor"), SHARE),
    },
    "glc.training.callbacks.ema.EMA": {
        "decay": replace(SHARE, text="a number from 0 to below 1"),
        "validate_live": BOOLEAN,
    },
    "glc.training.callbacks.rate_control.RateControl": {
        "target_bpp": replace(
            one_of(POSITIVE, sequence(POSITIVE)),
            text="a number above 0, or a list of them, one per rate point",
        ),
        **dict.fromkeys(("gain", "max_factor"), POSITIVE),
    },
    "glc.training.callbacks.codebook.": dict.fromkeys(("initialize_after", "restart_every"), optional(INDEX)),
    "glc.training.callbacks.media.": {"images": INDEX},
    "glc.training.loggers.wandb_logger": {
        "project": TEXT,
        "tags": sequence(TEXT),
        "artifacts": BOOLEAN,
        "upload_mb": WEIGHT,
    },
    "glc.training.checkpoints.LastCheckpoint": {"every_n_steps": INDEX},
    "glc.training.checkpoints.TimeLimit": {"minutes": optional(WEIGHT)},
    "lightning.pytorch.callbacks.ModelCheckpoint": {
        "every_n_train_steps": optional(INDEX),
        "save_top_k": integer(-1),
        **dict.fromkeys(
            ("save_on_train_epoch_end", "enable_version_counter", "auto_insert_metric_name"), BOOLEAN
        ),
    },
    "lightning.pytorch.callbacks.TQDMProgressBar": {"refresh_rate": INDEX},
    "lightning.pytorch.callbacks.LearningRateMonitor": {
        "logging_interval": optional(choice("step", "epoch"))
    },
    "torch.optim.": {
        "lr": WEIGHT,
        "weight_decay": WEIGHT,
        "betas": sequence(SHARE, 2, "a list of two numbers from 0 to 1, such as [0.9,0.999]"),
        "momentum": WEIGHT,
        "eps": WEIGHT,
        **dict.fromkeys(("fused", "foreach"), optional(BOOLEAN)),
        **dict.fromkeys(("amsgrad", "nesterov", "maximize", "capturable", "differentiable"), BOOLEAN),
        "gamma": POSITIVE,
    },
    "glc.evaluation.testsets.open_testset": {
        **dict.fromkeys(("count", "resize", "center_crop", "limit"), optional(COUNT)),
        **dict.fromkeys(("first", "seed"), INDEX),
        "path": optional(NAMES),
        "background": TEXT,
        "member": optional(replace(TEXT, text="the suffix of a file, such as jpg or mask.png")),
        "sizes": optional(sequence(sequence(COUNT, 2), text="a list of sizes, [[WIDTH,HEIGHT],...]")),
    },
}
"""Types of arguments by their class or function, or by a module (with a dot at the end)."""

KEYS: dict[str, dict[str, Accepted]] = {
    "train": {
        "name": TEXT,
        "runs_dir": TEXT,
        "seed": INDEX,
        "batch": COUNT,
        "init_from": optional(NAMES),
        "resume": optional(replace(TEXT, text="last, auto or a checkpoint")),
        **dict.fromkeys(("overwrite", "validate_first"), BOOLEAN),
        "max_minutes": optional(WEIGHT),
        **{f"model.{name}": kind for name, kind in _NETWORK.items()},
        "model.predictor_*": COUNT,
        **dict.fromkeys(("perceptual.weights.*", "discriminator.lecam"), WEIGHT),
        "model.hyper_codebook_size": COUNT,
        "model.context_depth": INDEX,
        "model.indices_map_sizes": sequence(COUNT),
        **dict.fromkeys(("model.projected_codebooks", "model.normalize_z"), BOOLEAN),
        "stage.clip": replace(WEIGHT, fix=" (0: no clipping)"),
        "stage.accumulate": COUNT,
        **dict.fromkeys(("stage.channels_last", "stage.compile"), BOOLEAN),
        "stage.parameter_groups": optional(replace(LIST, text="a list of mappings, [{match: PATTERN, ...}]")),
    },
    "evaluate": {
        "codec": replace(NAMES, text="a weights file, a codec's name, or a list of them"),
        "out": TEXT,
        **dict.fromkeys(("qualities", "target_bpp"), optional(one_of(NUMBER, sequence(NUMBER)))),
        "target_bpp": optional(one_of(POSITIVE, sequence(POSITIVE))),
        "optimize_latent": INDEX,
        "device": one_of(TEXT, sequence(TEXT)),
        **dict.fromkeys(("processes", "threads"), COUNT),
        "engine": choice("local", "ray"),
        **dict.fromkeys(("ray_cpus", "ray_memory"), optional(POSITIVE)),
        "ray_gpus": optional(WEIGHT),
        "part": optional(sequence(INDEX, 2, "a list of two, [I,N] with I below N")),
        "seed": INDEX,
        **dict.fromkeys(("overwrite", "keep", "wandb", "wandb_artifacts"), BOOLEAN),
        "wandb_project": TEXT,
        "codecs.*.qualities": optional(sequence(NUMBER)),
    },
}
"""Types of keys by primary configuration; `*` matches any name."""

STAGE_KEYS: dict[str, Accepted] = {
    "stage.lmbda": replace(
        one_of(POSITIVE, sequence(POSITIVE)), text="a number above 0, or a list of them, one per rate point"
    ),
    **dict.fromkeys(("stage.noise", "stage.balance", "stage.codec"), BOOLEAN),
    **dict.fromkeys(("stage.weights.*", "stage.distortion_weights.*"), WEIGHT),
    **dict.fromkeys(("stage.codebook_weight", "stage.adversarial_weight"), WEIGHT),
    "stage.discriminator_start": INDEX,
    "stage.discriminator_from": optional(replace(TEXT, text="auto, none or a checkpoint")),
    "stage.quantizer_bypass": SHARE,
    "stage.style_size": integer(64),
    "stage.target": replace(POSITIVE, text="a number of at least 1"),
    "stage.width": COUNT,
    "stage.validate_files": INDEX,
    "stage.style": TEXT,
    "stage.content_layers": sequence(INDEX),
}
"""Further keys, of the stages of glc; a user's own stage may give them another meaning."""

REQUIRED = (
    "data",
    "model",
    "stage",
    "stage.module",
    "stage.optimizer",
    "stage.schedule",
    "trainer",
    "metrics",
    "testset",
)
"""Sections that cannot be replaced by a value or null."""

MISSING = object()

_REFERENCE = re.compile(r"\$\{(?:oc\.select:)?([\w.]+)(?:,[^}]*)?\}")
_OURS = ("glc.", "lightning.", "pytorch_lightning.", "torch.")


class _Types:
    """The types of the keys of one configuration."""

    def __init__(self, cfg: DictConfig, config_name: str) -> None:
        self._keys = dict(KEYS.get(config_name, {}))
        if is_ours(OmegaConf.select(cfg, "stage.module._target_", throw_on_missing=False)):
            self._keys |= STAGE_KEYS

    def of(self, key: str, target: Any) -> Accepted | None:
        """Return the type of a key, or None if it is free.

        Args:
            key: its full name.
            target: `_target_` of its section or of the nearest section around it.
        """
        leaf = key.rpartition(".")[2]
        if target is not None:
            if not is_ours(target):
                return None
            for name in (str(target), *_modules(str(target))):
                if leaf in ARGUMENTS.get(name, {}):
                    return ARGUMENTS[name][leaf]
        if leaf == "_partial_":
            return BOOLEAN
        return next((kind for pattern, kind in self._keys.items() if fnmatchcase(key, pattern)), None)


def is_ours(target: Any) -> bool:
    """Return whether a `_target_` is of glc, Lightning or PyTorch."""
    return str(target).startswith(_OURS)


def _modules(target: str) -> Iterator[str]:
    """Yield the modules around a class, the innermost first: `a.b.C` gives `a.b.` and `a.`."""
    while "." in target:
        target = target.rpartition(".")[0]
        yield f"{target}."


def conform(cfg: DictConfig, config_name: str) -> DictConfig:
    """Return a copy of a composed configuration with values of the types that its keys accept.

    A string such as `no` becomes false where true or false is expected, `02` becomes 2 where a number is.

    Args:
        cfg: the configuration; not changed.
        config_name: `train` or `evaluate`; for other primary configurations only `ARGUMENTS` are checked.

    Raises:
        UsageError: a key does not accept its value; the message names both and says what is accepted.
    """
    cfg = copy.deepcopy(cfg)
    OmegaConf.set_readonly(cfg, False)
    types = _Types(cfg, config_name)
    for holder, key, name, target in list(_leaves(cfg)):
        kind = types.of(name, target)
        value = _value(holder, key, name)
        if name in REQUIRED and not isinstance(value, DictConfig):
            raise UsageError(f"{name}={shown(value)}: not valid; set the keys below it")
        if value is MISSING or kind is None:
            continue
        plain = OmegaConf.to_container(value, resolve=True) if isinstance(value, Container) else value
        converted = checked(origin(cfg, name), plain, kind)
        if type(converted) is not type(plain) or converted != plain:
            holder[key] = converted
    return cfg


def _value(holder: DictConfig, key: str, name: str) -> Any:
    """Return the resolved value of a key; MISSING without a value, or where only a Hydra job has one."""
    if OmegaConf.is_missing(holder, key):
        return MISSING
    try:
        return holder[key]
    except InterpolationToMissingValueError:
        return MISSING
    except OmegaConfBaseException as error:
        if "HydraConfig was not set" in str(error):
            return MISSING
        text = str(error).split("\n")[0]
        own = text.removeprefix("ValueError raised while resolving interpolation: ")
        raise UsageError(own if own != text else f"{name}: {text}") from error


def kind_of(cfg: DictConfig, config_name: str, name: str) -> Accepted | None:
    """Return the type of a key, which need not exist, or None if it is free."""
    target, node, parts = None, cfg, name.split(".")
    for part in parts:
        if not isinstance(node, DictConfig) or node._is_none():
            break
        found = node._get_node("_target_", validate_access=False)
        target = found._value() if isinstance(found, Node) else target
        node = OmegaConf.select(node, part, throw_on_resolution_failure=False)
    return _Types(cfg, config_name).of(name, target)


def checked(key: str, value: Any, kind: Accepted) -> Any:
    """Return a value in the type of its key.

    Raises:
        UsageError: it is not accepted.
    """
    try:
        return kind.convert(value)
    except (ValueError, TypeError, OverflowError):
        raise UsageError(f"{key}={shown(value)}: not valid; give {kind.text}{kind.fix}") from None


def _leaves(
    cfg: DictConfig, prefix: str = "", target: Any = None
) -> Iterator[tuple[DictConfig, str, str, Any]]:
    """Yield each key that is not a section: its section, key, full name, and nearest `_target_`."""
    own = cfg._get_node("_target_", validate_access=False)
    target = own._value() if isinstance(own, Node) else target
    for key in cfg:
        node: Any = cfg._get_node(key)
        name = f"{prefix}{key!s}"
        if isinstance(node, DictConfig) and not (node._is_none() or node._is_interpolation()):
            yield from _leaves(node, f"{name}.", target)
        elif key != "_target_":
            yield cfg, str(key), name, target


def origin(cfg: DictConfig, name: str) -> str:
    """Follow interpolations to a key of its own value: `model.quantizer.size` to `model.codebook_size`."""
    for _ in range(10):
        node: Any = cfg
        parts = name.split(".")
        for i, part in enumerate(parts):
            node = node._get_node(part, validate_access=False) if isinstance(node, DictConfig) else None
            raw = node._value() if isinstance(node, Node) else None
            found = _REFERENCE.fullmatch(raw) if isinstance(raw, str) else None
            if found is not None:
                name = ".".join([found[1], *parts[i + 1 :]])
                break
        else:
            return name
    return name
