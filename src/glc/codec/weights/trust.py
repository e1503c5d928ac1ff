"""Trusted packages: those besides glc whose classes a weights file may name.

A weights file describes its networks by class names, and importing a package runs its code. A file may
therefore name classes of glc only, unless the user trusts another package in one of three ways:

- the argument `trust="mypkg"` of `glc.load` and the other functions that open weights (`--trust mypkg` on the
    command line);
- the environment variable `GLC_TRUST=mypkg,another`;
- an entry point of the installed package:

```
[project.entry-points."glc.networks"]
mypkg = "mypkg"
```

The value is a package or module and includes its submodules. Decoding a `.glc` file never imports anything.
"""

import os
from collections.abc import Iterable
from importlib import import_module, metadata
from typing import TYPE_CHECKING

from glc.errors import ArchitectureError

if TYPE_CHECKING:
    from torch import nn

VARIABLE = "GLC_TRUST"
"""Environment variable: packages to trust, comma-separated."""
ENTRY_POINTS = "glc.networks"
"""Group of the entry points that declare trusted packages."""

Trust = str | Iterable[str]
"""Packages or modules whose classes a weights file may name; one string may list several, comma-separated."""


def find_class(name: str, trust: Trust = ()) -> "type[nn.Module]":
    """Import a network's class from a trusted package.

    Args:
        name: such as `mypkg.nets.MyEncoder`.
        trust: packages to trust besides those of the environment and of entry points.

    Raises:
        ArchitectureError: its package is not trusted, it cannot be imported, or it is not an `nn.Module` that
            the trusted package defines.
    """
    from torch import nn

    package = next((prefix for prefix in trusted_prefixes(trust) if _below(name, prefix)), None)
    if package is None:
        top = name.partition(".")[0]
        if top == "glc":
            raise ArchitectureError(f"{name!r} is not a network of this version of glc")
        raise ArchitectureError(
            f"{name!r} is not a network of glc, and its package is not trusted; if you trust {top!r}, give "
            f"trust={top!r} (--trust {top}, or {VARIABLE}={top}), or install a version of it that declares "
            f"an entry point in the group {ENTRY_POINTS}"
        )
    module, _, rest = name.rpartition(".")
    try:
        found = getattr(import_module(module), rest)
    except Exception as error:  # importing may raise any error
        raise ArchitectureError(f"{name!r} cannot be imported: {type(error).__name__}: {error}") from error
    # A trusted module also has the names that it imported, such as `os`.
    if not (isinstance(found, type) and issubclass(found, nn.Module) and _below(found.__module__, package)):
        raise ArchitectureError(f"{name!r} is not a subclass of torch.nn.Module defined in {package!r}")
    return found


def trusted_prefixes(trust: Trust) -> list[str]:
    """Return the trusted prefixes, without importing them."""
    given = [trust] if isinstance(trust, str) else list(trust)
    given.append(os.environ.get(VARIABLE, ""))
    named = [name.strip() for names in given for name in names.split(",")]
    declared = (point.value.replace(":", ".") for point in metadata.entry_points(group=ENTRY_POINTS))
    return [name for name in (*named, *declared) if name]


def _below(name: str, prefix: str) -> bool:
    return f"{name}.".startswith(f"{prefix}.")
