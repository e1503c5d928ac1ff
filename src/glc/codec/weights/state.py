"""State dicts: sub-dicts, comparison, half precision."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from glc.errors import WeightsError

Shaped = Tensor | Sequence[int]
"""A tensor, or the shape of one."""


def strip_prefix(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors named `prefix.*`, without the prefix."""
    start = f"{prefix}."
    return {name.removeprefix(start): tensor for name, tensor in state.items() if name.startswith(start)}


def difference(
    found: Mapping[str, Shaped],
    expected: Mapping[str, Shaped],
    *,
    limit: int = 3,
    ignored: tuple[str, ...] = (),
) -> str:
    """Describe how the tensors of a file differ from those of a network; empty if they fit.

    Args:
        found: tensors of the file, or their shapes.
        expected: tensors of the network, or their shapes.
        ignored: prefixes of names that the file may have in addition.
    """
    differing = [
        name for name, value in expected.items() if name in found and _shape(found[name]) != _shape(value)
    ]
    kinds = {
        "missing": [name for name in expected if name not in found],
        "unexpected": [name for name in found if name not in expected and not name.startswith(ignored)],
        "of another shape": [f"{n} is {_shape(found[n])}, not {_shape(expected[n])}" for n in differing],
    }
    return "; ".join(
        f"{kind}: {', '.join(names[:limit])}{f' and {len(names) - limit} more' if len(names) > limit else ''}"
        for kind, names in kinds.items()
        if names
    )


def half_precision(state: Mapping[str, Tensor], source: object) -> dict[str, Tensor]:
    """Return the tensors with floats in half precision; integers are unchanged.

    Raises:
        WeightsError: a value exceeds half precision; the message names `source` and the tensor.
    """
    halved = {name: t.half() if t.is_floating_point() else t for name, t in state.items()}
    for name, tensor in halved.items():
        if not tensor.isfinite().all():
            raise WeightsError(f"{source}: {name} exceeds half precision; export without --half")
    return halved


def _shape(value: Shaped) -> list[int]:
    return list(value.shape if isinstance(value, Tensor) else value)
