"""Which packages besides glc a weights file may name classes of.

A weights file describes its networks by the names of classes, and importing a package runs its code. So a
file may name classes of glc alone, unless whoever opens it allows a package, in one of three ways:

- `trust="mypkg"`, of `glc.load` and of the other functions that open weights (`--trust mypkg` of the
    commands);
- the environment variable `GLC_TRUST=mypkg,another`;
- an installed package that declares itself by an entry point:

```
[project.entry-points."glc.networks"]
mypkg = "mypkg"
```

The value is a package or module, which stands for all below it. Decoding a `.glc` file never imports
anything.
"""

import os
from collections.abc import Iterable
from importlib import import_module, metadata
from typing import TYPE_CHECKING

from glc.errors import ArchitectureError

if TYPE_CHECKING:
    from torch import nn

VARIABLE = "GLC_TRUST"
"""Environment variable: packages to trust, with commas between them."""
ENTRY_POINTS = "glc.networks"
"""Group of entry points by which an installed package declares itself."""

Trust = str | Iterable[str]
"""Packages or modules whose classes a weights file may name; a text may hold several, comma-separated."""


def find_class(name: str, trust: Trust = ()) -> "type[nn.Module]":
    """Import a network's class from a trusted package.

    Args:
        name: such as `mypkg.nets.MyEncoder`.
        trust: packages to trust besides those of the environment and of entry points.

    Raises:
        ArchitectureError: nobody trusts its package, it cannot be imported, or it is not an `nn.Module` that
            the trusted package defines.
    """
    from torch import nn

    package = next((prefix for prefix in _trusted(trust) if _below(name, prefix)), None)
    if package is None:
        top = name.partition(".")[0]
        if top == "glc":
            raise ArchitectureError(f"{name!r} is not a network known to this version of glc")
        raise ArchitectureError(
            f"{name!r} is not a network of glc, and its package is not trusted; if you trust {top!r}: give "
            f"trust={top!r} (--trust {top}, or {VARIABLE}={top}), or install a version of it that declares "
            f"an entry point in the group {ENTRY_POINTS}"
        )
    module, _, rest = name.rpartition(".")
    try:
        found = getattr(import_module(module), rest)
    except Exception as error:  # the package is trusted, but may fail in any way
        raise ArchitectureError(f"{name!r} cannot be imported: {type(error).__name__}: {error}") from error
    # A trusted module also holds what it imported itself, such as `os`.
    if not (isinstance(found, type) and issubclass(found, nn.Module) and _below(found.__module__, package)):
        raise ArchitectureError(f"{name!r} is not a subclass of torch.nn.Module defined in {package!r}")
    return found


def _trusted(trust: Trust) -> list[str]:
    """Return the trusted prefixes; nothing of them is imported."""
    given = [trust] if isinstance(trust, str) else list(trust)
    given.append(os.environ.get(VARIABLE, ""))
    named = [name.strip() for names in given for name in names.split(",")]
    declared = (point.value.replace(":", ".") for point in metadata.entry_points(group=ENTRY_POINTS))
    return [name for name in (*named, *declared) if name]


def _below(name: str, prefix: str) -> bool:
    return f"{name}.".startswith(f"{prefix}.")
