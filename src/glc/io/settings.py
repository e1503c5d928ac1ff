"""Settings of runs, as nested mappings."""

import json
from collections.abc import Mapping, Sequence
from typing import Any


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of nested settings by dotted key; lists are values."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{name}.")
        else:
            found[name] = value
    return found


def differing(runs: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Return the settings that differ between runs: by key a value per run, None if missing.

    A run's own folder, the setting `dir`, counts as equal in any value. Of keys with the same values only the
    shortest is kept: the others refer to it.
    """
    each = [flat(settings) for settings in runs]
    compared = [*map(_without_folder, each)]
    found: dict[str, list[Any]] = {}
    seen = set()
    keys = dict.fromkeys(key for settings in each for key in settings)
    for key in sorted(keys, key=lambda key: (key.count("."), len(key), key)):
        values = [settings.get(key) for settings in compared]
        texts = tuple(json.dumps(value, sort_keys=True, default=str) for value in values)
        if len(set(texts)) > 1 and texts not in seen:
            seen.add(texts)
            found[key] = [settings.get(key) for settings in each]
    return dict(sorted(found.items()))


def _without_folder(settings: dict[str, Any]) -> dict[str, Any]:
    folder = settings.get("dir")
    if not isinstance(folder, str) or not folder:
        return settings
    return {
        key: value.replace(folder, "DIR") if isinstance(value, str) else value
        for key, value in settings.items()
    }
