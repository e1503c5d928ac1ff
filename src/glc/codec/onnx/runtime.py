"""Run E, g_a, g_s and D in ONNX Runtime."""

import os
from collections.abc import Callable, Mapping
from threading import Lock
from typing import Any

import numpy as np

from glc.codec.onnx import networks
from glc.codec.onnx.graph import Graph
from glc.codec.onnx.weights import ArrayWeights, Floats

_BUILDERS: Mapping[str, tuple[str, Callable[..., Graph]]] = {
    "encoder": ("encoder", networks.encoder),
    "analysis": ("coder", networks.analysis),
    "synthesis": ("coder", networks.synthesis),
    "decoder": ("decoder", networks.decoder),
}
"""Key of the description and function of each graph."""
NAMES = tuple(_BUILDERS)


def threads() -> int:
    """Return the number of threads to use: `OMP_NUM_THREADS`, else the processors of this process."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    if given.isdecimal() and int(given) > 0:
        return int(given)
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def make_graph(weights: ArrayWeights, name: str) -> Graph:
    """Return a graph by its name in `_BUILDERS`."""
    key, build = _BUILDERS[name]
    return build(weights.description[key], Floats(weights.tensors))


class Sessions:
    """The networks of a codec as ONNX Runtime's sessions, each made when it is first used. Thread-safe."""

    def __init__(self, weights: ArrayWeights) -> None:
        self._weights = weights
        self._lock = Lock()
        self._sessions: dict[str, Any] = {}

    def run(self, name: str, **inputs: np.ndarray) -> list[np.ndarray]:
        """Return the outputs of a graph.

        Raises:
            MemoryError: the runtime cannot allocate memory.
        """
        import onnxruntime

        with self._lock:
            if name not in self._sessions:
                self._sessions[name] = self._make(name)
        session = self._sessions[name][0]
        try:
            found: list[np.ndarray] = session.run(None, inputs)
        except onnxruntime.capi.onnxruntime_pybind11_state.RuntimeException as error:
            if "Failed to allocate memory" in str(error) or "bad_alloc" in str(error):
                raise MemoryError(str(error)) from error
            raise
        return found

    def _make(self, name: str) -> tuple[Any, list[Any]]:
        """Return a session and its weights, whose memory it uses."""
        import onnxruntime

        graph = make_graph(self._weights, name)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads()
        options.log_severity_level = 3  # errors only
        # The arena keeps the largest memory that any image needed; allocating anew costs a few per cent.
        options.enable_cpu_mem_arena = False
        if os.environ.get("OMP_WAIT_POLICY", "").lower() == "passive":  # glc.io.threads_policy
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # The runtime does not copy these arrays: they must live as long as the session.
        values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in graph.used.values()]
        options.add_external_initializers(list(graph.used), values)
        model = graph.serialize(external=True)
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"]), values
