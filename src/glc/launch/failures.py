"""Errors of objects that a configuration cannot make, as one line that names the key."""

import re

from hydra.errors import InstantiationException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from glc.launch.config import UsageError
from glc.launch.schema import origin
from glc.losses.perceptual import WeightsUnavailable

UNUSABLE = (ValueError, OSError, WeightsUnavailable, InstantiationException, OmegaConfBaseException)
"""Errors of a configuration that cannot be used."""

_LOCATING = re.compile(r"Error (?:locating target|loading) '([^']+)'")


def usage_error(error: BaseException, cfg: DictConfig) -> UsageError:
    """Return the error to raise for one of `UNUSABLE`.

    Messages of glc name the key themselves; for those of other libraries the key of the object is added.

    Args:
        error: the error.
        cfg: the configuration, with its interpolations.
    """
    key = ""
    while isinstance(error, InstantiationException):
        key = _key(error, cfg) or key
        target = _LOCATING.search(str(error))
        if target is not None:
            return UsageError(
                f"{key}._target_={target[1]}: cannot be imported; correct the name, or install its package"
            )
        if error.__cause__ is None:
            break
        error = error.__cause__
    text = " ".join(str(error).partition("\n    full_key")[0].split())
    return UsageError(text if not key or _names_key(error) else f"{key}: {text}")


def _names_key(error: BaseException) -> bool:
    """Return whether an error was raised by glc, whose messages name the key or the file."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    module = "" if trace is None else str(trace.tb_frame.f_globals.get("__name__"))
    return module.startswith("glc.") and not module.startswith(("glc.models", "glc.layers"))


def _key(error: InstantiationException, cfg: DictConfig) -> str | None:
    """Return the key of the object that could not be made, as the user writes it."""
    found = re.search(r"full_key: (\S+)", str(error))
    if found is None:
        return "trainer" if "trainer.Trainer'" in str(error) else None
    return origin(cfg, found[1])
