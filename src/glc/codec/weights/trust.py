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
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

from glc.errors import ArchitectureError

if TYPE_CHECKING:
    from torch import nn

VARIABLE = "GLC_TRUST"
"""Environment variable: packages to trust, comma-separated."""
ENTRY_POINTS = "glc.networks"
"""Group of the entry points that declare trusted packages."""

TARGET = "_target_"
"""Key of a class's name in a description, as in the configuration."""

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
    return import_from(
        name,
        [package],
        lambda found: isinstance(found, type) and issubclass(found, nn.Module),
        f"a subclass of torch.nn.Module defined in {package!r}",
    )


def build_nested(node: Any, make: Callable[[Any, dict[str, Any]], Any]) -> Any:
    """Build the objects that nested settings or a description name under `_target_`, innermost first.

    Args:
        node: mappings with `_target_` become objects; lists and other values are kept. Hydra's `_recursive_`
            is honoured.
        make: makes an object from the value of `_target_` and the other values of its mapping.
    """
    if isinstance(node, list | tuple):
        return [build_nested(item, make) for item in node]
    if not isinstance(node, Mapping):
        return node
    raw = node.get("_recursive_") is False
    values = {
        key: value if raw else build_nested(value, make)
        for key, value in node.items()
        if key not in (TARGET, "_recursive_", "_convert_")
    }
    return make(node[TARGET], values) if TARGET in node else values


def import_from(name: str, packages: Sequence[str], accepts: Callable[[Any], bool], what: str) -> Any:
    """Import an object that one of the packages defines.

    Args:
        name: its dotted name, below one of the packages.
        accepts: whether it is of the wanted kind.
        what: description of the kind, for messages.

    Raises:
        ArchitectureError: it cannot be imported, is of another kind, or is defined elsewhere.
    """
    module, _, attribute = name.rpartition(".")
    try:
        found = getattr(import_module(module), attribute)
    except Exception as error:  # importing may raise any error
        raise ArchitectureError(f"{name!r} cannot be imported: {type(error).__name__}: {error}") from error
    # A module of the package also has the names that it imported, such as `os`.
    if not (accepts(found) and any(_below(f"{found.__module__}.{found.__qualname__}", p) for p in packages)):
        raise ArchitectureError(f"{name!r} is not {what}")
    return found


def trusted_prefixes(trust: Trust) -> list[str]:
    """Return the trusted prefixes, without importing them."""
    from importlib import metadata  # takes 20 ms, which commands without weights need not wait for

    given = [trust] if isinstance(trust, str) else list(trust)
    given.append(os.environ.get(VARIABLE, ""))
    named = [name.strip() for names in given for name in names.split(",")]
    declared = (point.value.replace(":", ".") for point in metadata.entry_points(group=ENTRY_POINTS))
    return [name for name in (*named, *declared) if name]


def _below(name: str, prefix: str) -> bool:
    return f"{name}.".startswith(f"{prefix}.")
