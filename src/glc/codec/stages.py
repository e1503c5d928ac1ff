"""Report the stages that a codec runs to an observer, for measurements."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

Observer = Callable[[str], AbstractContextManager[object]]
"""Takes the name of a stage and returns the context in which the stage runs. Stages may nest."""

ENTROPY_CODING = "entropy coding"
"""Latent to payload, or back. The networks within it are stages of their own."""
INTEGER_NETWORKS = "integer networks"
"""Hyper-synthesis and context model."""
CODEBOOK_SEARCH = "codebook search"
"""Nearest codewords of an `IndicesMapCoder`."""


class Stages:
    """Runs each stage of a codec in the context that the observer, if any, returns for the stage's name."""

    def __init__(self) -> None:
        self._observer: Observer | None = None

    def __call__(self, name: str) -> AbstractContextManager[object]:
        """Return the context of a stage."""
        return nullcontext() if self._observer is None else self._observer(name)

    @contextmanager
    def observe(self, observer: Observer) -> Iterator[None]:
        """Report the stages that begin within the block, in any thread, to an observer."""
        before, self._observer = self._observer, observer
        try:
            yield
        finally:
            self._observer = before
