"""Errors of glc. All derive from `ValueError`."""


class BitstreamError(ValueError):
    """A `.glc` file cannot be decoded; the message says why. Subclasses tell the reasons apart."""


class NotGlcError(BitstreamError):
    """The data are empty or do not start with the magic bytes of a `.glc` file."""


class TruncatedError(BitstreamError):
    """The file ends within its header."""


class CorruptFileError(BitstreamError):
    """The checksum does not match, or the payload does not decode: the file is truncated or corrupt."""


class NewerVersionError(BitstreamError):
    """The file was written by a later version of the format."""


class WrongWeightsError(BitstreamError):
    """The file was written with another model."""


class SizeLimitError(BitstreamError):
    """The image exceeds the size limit; nothing was allocated for it."""


class TargetError(ValueError):
    """Quality 0 exceeds the target size; the message names the smallest possible size."""


class WeightsError(ValueError):
    """A weights file or checkpoint cannot be used; the message names the file and the reason."""


class BackendError(WeightsError):
    """A weights file needs the backend `torch`."""


class ArchitectureError(ValueError):
    """A description names an unknown or untrusted network, or arguments that it does not accept."""


class OverBudgetError(ValueError):
    """A described network is far larger than the tensors in its file."""


class TableError(ValueError):
    """Stored frequency tables are invalid."""


class InexactError(ValueError):
    """A network or a device cannot compute the probabilities in integer arithmetic."""


class NotFiniteError(ValueError):
    """A decoded image has non-finite pixels."""


class MemoryLimitError(ValueError):
    """An image needs more memory than the limit."""


class ImageError(ValueError):
    """An image cannot be read; the message starts with its name."""


class ListingError(ValueError):
    """A source of images does not exist or contains no images; the message names it."""


class SettingError(ValueError):
    """A setting of a training run cannot be used; the message names its key, what is wrong and the fix."""
