"""Overrides on the command line: what cannot be, what was meant, and how the jobs of a sweep are named."""

import difflib
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

SWEPT_KEYS = "GLC_SWEPT_KEYS"
"""Environment variable that tells the jobs of a sweep, in whatever process, what is swept over."""

CONF = Path(__file__).resolve().parents[3] / "conf"

RENAMED: dict[str, dict[str, str]] = {
    "train": {
        "coder": "model/variants",
        "coder=transform": "the default: leave it out",
        "code_prediction=none": "model/variants=no_code_prediction",
        "code_prediction=network": "model/variants=refiner",
        "code_prediction=supervision": "the default: leave it out",
        "experiment=paper_natural": "experiment=paper model=natural",
        "experiment=paper_facial": "experiment=paper model=facial",
        "experiment=paper_f8": "experiment=paper model=natural_f8",
        "trainer=bf16": "trainer.precision=bf16-mixed",
        "trainer=torchrun": "trainer=ddp",
        **{
            f"data={name}": f"testset={name} of an evaluation; train on data=folder data.train=A data.val=B"
            for name in ("kodak", "clic2020", "div2k", "celebahq", "coco30k")
        },
    },
    "evaluate": {"data": "testset", "pictures": "testset"},
}
"""Words of 0.1 by primary configuration: a group or section, or an override in full, and what replaces it."""


def case(value: str, table: Mapping[str, Any], otherwise: Any) -> Any:
    """Return the entry of a value, `${case:${model},{facial: ffhq},openimages}`."""
    return table.get(value, otherwise)


# Defaults lists use it, so it must be known wherever a configuration is composed.
OmegaConf.register_new_resolver("case", case, replace=True)


def _keys(cfg: DictConfig, prefix: str = "") -> Iterator[str]:
    for key in cfg:
        name = f"{prefix}{key}"
        yield name
        if OmegaConf.is_dict(cfg._get_node(key)) and not cfg._get_node(key)._is_none():
            yield from _keys(cfg._get_node(key), f"{name}.")


def _named(override: Override, known: list[str]) -> Iterator[str]:
    """Yield the keys that an override names: its own, or those of the values that it gives to a section."""

    def below(key: str, value: Any) -> Iterator[str]:
        if isinstance(value, dict) and any(k.startswith(f"{key}.") for k in known):
            for name, item in value.items():
                yield from below(f"{key}.{name}", item)
        else:
            yield key

    yield from below(override.key_or_group, override.value())


def _parse(arguments: list[str]) -> list[Override]:
    """Return the overrides on a command line; those that Hydra will complain about are left out with all."""
    words = [a for a in arguments if "=" in a and not a.startswith("-")]
    try:
        return OverridesParser.create().parse_overrides(words)
    except HydraException:
        return []


def _swept(words: Iterable[str]) -> list[str]:
    return [override.key_or_group for override in _parse(list(words)) if override.is_sweep_override()]


def remember_swept_keys(arguments: list[str]) -> None:
    """Tell `swept_name`, here and in processes started from here, which keys take several values."""
    os.environ[SWEPT_KEYS] = ",".join(_swept(arguments))


def swept_name(overrides: list[str], otherwise: str, params: Mapping[str, Any] | None = None) -> str:
    """Return the folder of a sweep's job: what it was given of what is swept over, `stage.lmbda-2_seed-1`.

    Args:
        overrides: the job's, as `KEY=VALUE`.
        otherwise: the name where nothing is known to be swept over.
        params: the sweep written in yaml, `hydra.sweeper.params`.
    """
    written = _swept(f"{key}={value}" for key, value in (params or {}).items())
    swept = [*os.environ.get(SWEPT_KEYS, "").split(","), *written]
    given = (override.lstrip("+").partition("=")[::2] for override in overrides)
    parts = [f"{key}-{value}" for key, value in given if key in swept]
    # One folder's name, and one that may be given in an override.
    return "_".join(parts).translate(str.maketrans("/=,", "---", "[]")) or otherwise


def _renamed(overrides: list[Override], config_name: str) -> str | None:
    """Return a message for the first override in words of 0.1."""
    table = RENAMED.get(config_name, {})
    for override in overrides:
        word = str(override.input_line).lstrip("+~")
        section = override.key_or_group.partition(".")[0]
        now = table.get(word) or (word.replace(section, table[section], 1) if section in table else None)
        if now:
            return f"{word} is now {now}"
    return None


def _impossible_choice(chosen: list[Override]) -> str | None:
    """Return a message for the first group that is given no name to choose."""
    for override in chosen:
        group, value = override.key_or_group, override.value()
        if not (override.is_delete() or override.is_sweep_override() or isinstance(value, str | list)):
            names = sorted(path.stem for path in (CONF / group).glob("*.yaml"))
            return f"{override.input_line}: choose one of {', '.join(names)}, or leave {group} out"
    return None


def explain_overrides(arguments: list[str], config_name: str = "train") -> str | None:
    """Return a message for the first override that cannot be, or None when all can.

    It uses a word of 0.1, names a key that does not exist, gives a group nothing to choose, or sweeps stages.

    What Hydra itself reports well, such as a missing choice, is left to it.

    Args:
        arguments: the command line.
        config_name: the primary configuration.
    """
    overrides = _parse(arguments)
    if renamed := _renamed(overrides, config_name):
        return renamed
    groups = {p.relative_to(CONF).as_posix() for p in CONF.rglob("*") if p.is_dir()} | {
        "hydra/launcher",
        "hydra/sweeper",
    }
    # `stage={name: x}` changes the section of the group's name; `stage=x` chooses from the group.
    chosen = [o for o in overrides if o.key_or_group in groups and not isinstance(o.value(), dict)]
    impossible = _impossible_choice([o for o in chosen if not o.key_or_group.startswith("hydra")])
    if impossible:
        return impossible
    changed = [
        o
        for o in overrides
        if o not in chosen
        and not o.key_or_group.startswith("hydra.")
        and not (o.is_add() or o.is_force_add() or o.is_delete())
    ]
    # Any one of a sweep's choices shows the keys.
    choices = [
        str(o.input_line).split(",")[0] if o.is_sweep_override() else str(o.input_line)
        for o in chosen
        if not o.key_or_group.startswith("hydra")
    ]
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = compose(config_name, choices)
    except HydraException:
        return None
    known = list(_keys(cfg))
    for key in (key for override in changed for key in _named(override, known)):
        if key in known:
            continue
        leaf = key.rpartition(".")[2]
        siblings = [k for k in known if k.rpartition(".")[2] == leaf]
        near = difflib.get_close_matches(key, [*known, *groups], n=3, cutoff=0.7)
        meant = list(dict.fromkeys([*near, *siblings]))[:3]
        hint = f"did you mean {' or '.join(meant)}?" if meant else "see --cfg job for all keys"
        return f"there is no key {key!r}: {hint}"
    if config_name == "train" and any(o.key_or_group == "stage" and o.is_sweep_override() for o in chosen):
        return "a sweep is of one stage, since each starts from the one before: give a command for each"
    return None
