"""What did the user mean? Suggestions for command-line overrides that the configuration does not have."""

import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

CONF = Path(__file__).resolve().parent.parent / "conf"


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


def explain_unknown_keys(arguments: list[str], config_name: str = "train") -> str | None:
    """Return a message for the first override of a key that does not exist, or None when all do.

    What Hydra itself reports well, such as a missing choice, is left to it.

    Args:
        arguments: the command line.
        config_name: the primary configuration.
    """
    parser = OverridesParser.create()
    words = [a for a in arguments if "=" in a and not a.startswith("-")]
    try:
        overrides = parser.parse_overrides(words)
    except HydraException:
        return None
    groups = {p.relative_to(CONF).as_posix() for p in CONF.rglob("*") if p.is_dir()} | {
        "hydra/launcher",
        "hydra/sweeper",
    }
    # `stage={name: x}` changes the section of the group's name; `stage=x` chooses from the group.
    chosen = [o for o in overrides if o.key_or_group in groups and not isinstance(o.value(), dict)]
    changed = [
        o
        for o in overrides
        if o not in chosen
        and not o.key_or_group.startswith("hydra.")
        and not (o.is_add() or o.is_force_add() or o.is_delete())
    ]
    # A sweep's choices are lists; any one of them shows the keys.
    choices = [o.input_line.split(",")[0] for o in chosen if not o.key_or_group.startswith("hydra")]
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
    return None
