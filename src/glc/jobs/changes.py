"""How two sets of settings differ, in words."""

import json
from collections.abc import Iterator, Mapping
from typing import Any


def differences(before: Any, now: Any, name: str = "") -> Iterator[str]:
    """Yield what is gone, new or has another value, keys of mappings in mappings joined by dots.

    Args:
        before: values in JSON's types.
        now: likewise.
        name: of the place that both stand at.
    """
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in dict.fromkeys([*before, *now]):
            place = f"{name}.{key}" if name else str(key)
            if key not in now:
                yield f"{place} is gone"
            elif key not in before:
                yield f"{place} is new"
            else:
                yield from differences(before[key], now[key], place)
    elif before != now:
        yield f"{name} was {_short(before)}, is {_short(now)}"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
