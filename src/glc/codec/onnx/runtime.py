"""Run E, g_a, g_s and D in ONNX Runtime."""

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from threading import Lock, Thread
from typing import Any

import numpy as np

from glc.codec.onnx import networks
from glc.codec.onnx.graph import Graph
from glc.codec.onnx.weights import ArrayWeights
from glc.errors import WeightsError

_BUILDERS: Mapping[str, tuple[str, Callable[..., Graph]]] = {
    "encoder": ("encoder", networks.encoder),
    "analysis": ("coder", networks.analysis),
    "synthesis": ("coder", networks.synthesis),
    "decoder": ("decoder", networks.decoder),
}
"""Key of the description and function of each graph."""
_ARENA_PIXELS = 1 << 21
"""Largest image whose maps ONNX Runtime allocates from an arena. It makes the first run 0.1 s faster; for
larger images it needs a quarter more memory (decoder of `small`, 3072 x 2048)."""
NAMES = tuple(_BUILDERS)


def threads() -> int:
    """Return the number of threads to use: `OMP_NUM_THREADS`, else the processors of this process."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    if given.isdecimal() and int(given) > 0:
        return int(given)
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def make_graphs(weights: ArrayWeights) -> dict[str, Graph]:
    """Return the graphs of a codec; an indices-map codec has those of its encoder and decoder only.

    Raises:
        WeightsError: the weights do not fit their description.
    """
    maps_indices = "sizes" in weights.description["coder"]
    try:
        return {
            name: build(weights.description[key], weights.tensors)
            for name, (key, build) in _BUILDERS.items()
            if key != "coder" or not maps_indices
        }
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else error
        raise WeightsError(f"{weights.source}: the weights do not fit their description: {reason}") from error


class Sessions:
    """Graphs as ONNX Runtime's sessions, each made when it is first used. Thread-safe.

    Args:
        source: the weights' file, for messages.
    """

    def __init__(self, graphs: Mapping[str, Graph], source: str) -> None:
        self._graphs, self._source = graphs, source
        self._locks = {name: Lock() for name in graphs}
        self._sessions: dict[tuple[str, bool], Any] = {}

    def prepare(self, name: str, pixels: int) -> None:
        """Make the session for an image in another thread: a core is idle until the session is needed."""

        def make() -> None:
            with suppress(Exception):  # `run` will raise it
                self._session(name, pixels)

        # Not a daemon: at exit the interpreter must wait for native code.
        if (name, pixels <= _ARENA_PIXELS) not in self._sessions:
            Thread(target=make).start()

    def _session(self, name: str, pixels: int) -> Any:
        arena = pixels <= _ARENA_PIXELS
        with self._locks[name]:
            if (name, arena) not in self._sessions:
                self._sessions[name, arena] = self._make(name, arena)
        return self._sessions[name, arena][0]

    def run(self, name: str, pixels: int = 0, **inputs: np.ndarray) -> list[np.ndarray]:
        """Return the outputs of a graph.

        Args:
            pixels: of the image, where the graph runs at its size.

        Raises:
            MemoryError: the runtime cannot allocate memory.
            WeightsError: the runtime refuses the graph.
            RuntimeError: the runtime fails, for example on weights of wrong shapes.
        """
        import onnxruntime

        session, options = self._session(name, pixels), onnxruntime.RunOptions()
        if pixels <= _ARENA_PIXELS:  # else the arena would keep its memory
            options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        try:
            found: list[np.ndarray] = session.run(None, inputs, options)
        except Exception as error:  # the runtime's errors derive from Exception alone
            memory = "Failed to allocate memory" in str(error) or "bad_alloc" in str(error)
            text = " ".join(str(error).split())
            raise (MemoryError if memory else RuntimeError)(f"{self._source}: {name}: {text}") from error
        return found

    def _make(self, name: str, arena: bool) -> tuple[Any, list[Any]]:
        """Return a session and its weights, whose memory it uses."""
        import onnxruntime

        graph = self._graphs[name]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads()
        options.log_severity_level = 4  # errors are raised, need not be printed too
        options.enable_cpu_mem_arena = arena
        if os.environ.get("OMP_WAIT_POLICY", "").lower() == "passive":  # glc.io.threads_policy
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # The arrays must outlive the session, which need not copy them.
        values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in graph.floats().values()]
        options.add_external_initializers(list(graph.used), values)
        model = graph.serialize(external=True)
        try:
            session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # as in `run`
            text = " ".join(str(error).split())
            raise WeightsError(f"{self._source}: ONNX Runtime refuses the {name}: {text}") from error
        return session, values
