"""What a published layout is: which of our networks it holds, and what their tensors are called there."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from glc.codec.weights.architecture import build
from glc.codec.weights.state import difference

Shapes = Mapping[str, tuple[int, ...]]
Names = Mapping[str, str]
"""From the names of our modules or parameters to theirs."""

INITIALIZED = "initialized"
"""Ours alone: a published codebook was trained, so it counts as initialised."""


class Entry(NamedTuple):
    """One tensor of a published file."""

    official: str
    network: str
    name: str
    """In our network's state."""
    shape: tuple[int, ...]
    """In the published file; it may have more axes of length 1 than ours."""
    ours: tuple[int, ...]


@dataclass(frozen=True)
class Network:
    """One of our networks in a published layout.

    Args:
        description: its architecture, for `glc.codec.weights.architecture.build`.
        names: ours to theirs. A name stands for itself and for all below it.
        spread: names of ours, of tensors `[K, N]` that they store as `[K, N, 1, 1]`.
        optional: a file without any of it is whole.
    """

    description: Mapping[str, Any]
    names: Names
    spread: frozenset[str] = frozenset()
    optional: bool = False

    def entries(self, network: str) -> Iterator[Entry]:
        """Yield an entry for each tensor of the network but `initialized`.

        Raises:
            ArchitectureError: when the description cannot be built.
            KeyError: when a tensor has no name in the layout.
        """
        with torch.device("meta"):
            module = build(self.description)
        assert isinstance(module, nn.Module)
        for name, tensor in module.state_dict().items():
            if name.rpartition(".")[2] == INITIALIZED:
                continue
            ours = tuple(tensor.shape)
            shape = (*ours, 1, 1) if name in self.spread else ours
            yield Entry(self.official(name), network, name, shape, ours)

    def official(self, name: str) -> str:
        """Return their name of one of our tensors.

        Raises:
            KeyError: when it has none.
        """
        module, rest = name, ""
        while module not in self.names:
            module, _, leaf = module.rpartition(".")
            if not leaf or not module:
                raise KeyError(name)
            rest = f".{leaf}{rest}"
        return self.names[module] + rest


@dataclass(frozen=True)
class Layout:
    """How a published file stores our networks.

    Args:
        kind: `glc`, `taming` or `codeformer`.
        title: what to call such a file.
        networks: ours, by name.
        ignored: starts of names that are no part of our networks.
    """

    kind: str
    title: str
    networks: Mapping[str, Network]
    ignored: tuple[str, ...] = ()
    _entries: dict[str, Entry] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        entries = [e for name, network in self.networks.items() for e in network.entries(name)]
        table = {entry.official: entry for entry in entries}
        assert len(table) == len(entries), "a name of the layout stands for two tensors"
        object.__setattr__(self, "_entries", table)

    @property
    def entries(self) -> Mapping[str, Entry]:
        """All tensors by their published names."""
        return self._entries

    def present(self, names: Iterable[str]) -> list[str]:
        """Return the networks that a file must have whole: all but the optional ones without any tensor."""
        touched = {self._entries[name].network for name in names if name in self._entries}
        return [name for name, network in self.networks.items() if not network.optional or name in touched]

    def difference(self, shapes: Shapes, limit: int = 3) -> str:
        """Say how a file differs from the layout, by the first few names; empty when it fits.

        Args:
            shapes: of all tensors in the file.
            limit: names of each kind of difference to give.
        """
        present = set(self.present(shapes))
        expected = {name: e.shape for name, e in self._entries.items() if e.network in present}
        return difference(shapes, expected, limit=limit, ignored=self.ignored)

    def to_networks(
        self, tensors: Mapping[str, Tensor], networks: Iterable[str] | None = None
    ) -> dict[str, dict[str, Tensor]]:
        """Return the states of our networks, views of the tensors of a file that fits the layout.

        Args:
            tensors: of the file.
            networks: the ones to return, of which all tensors are given; by default those that are present.
        """
        chosen = self.present(tensors) if networks is None else networks
        states: dict[str, dict[str, Tensor]] = {name: {} for name in chosen}
        for official, entry in self._entries.items():
            if entry.network in states:
                states[entry.network][entry.name] = tensors[official].reshape(entry.ours)
        for state in states.values():
            state.update({name: torch.tensor(True) for name in _flags(state)})
        return states

    def from_networks(self, states: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Undo `to_networks`: the tensors of a published file, for the networks that are given."""
        return {
            official: states[entry.network][entry.name].reshape(entry.shape)
            for official, entry in self._entries.items()
            if entry.network in states
        }


def _flags(state: Mapping[str, Tensor]) -> list[str]:
    """Return the names of the flags that belong to the codebooks of a state."""
    codes = (name.removesuffix("embedding") for name in state if name.rpartition(".")[2] == "embedding")
    return [before + INITIALIZED for before in codes]


def size_reader(shapes: Shapes) -> Callable[[str, int, int], int]:
    """Return a function that reads a width: from a tensor's name, an axis, and what to take without it."""

    def size(name: str, axis: int, default: int) -> int:
        shape = shapes.get(name, ())
        return shape[axis] if len(shape) > axis and shape[axis] > 0 else default

    return size
