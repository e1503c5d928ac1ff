"""Names of the stages that a codec runs, told to an observer: for measurements, without patching anything."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

Observer = Callable[[str], AbstractContextManager[object]]
"""Takes the name of a stage and returns the context in which the stage runs. Stages may nest."""

ENTROPY_CODING = "entropy coding"
"""From the latent to the payload of a file, or back. The networks within are stages of their own."""
INTEGER_NETWORKS = "exact networks"


class Stages:
    """Runs each stage of a codec in the context that the observer, if there is one, returns for its name."""

    def __init__(self) -> None:
        self._observer: Observer | None = None

    def __call__(self, name: str) -> AbstractContextManager[object]:
        """Return the context of a stage."""
        return nullcontext() if self._observer is None else self._observer(name)

    @contextmanager
    def observe(self, observer: Observer) -> Iterator[None]:
        """Tell an observer of the stages that begin within the block, in whichever thread."""
        before, self._observer = self._observer, observer
        try:
            yield
        finally:
            self._observer = before
