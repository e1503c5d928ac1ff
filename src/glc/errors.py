"""What can be wrong with a file, a target, an image or weights: each has its type, a `ValueError`."""


class BitstreamError(ValueError):
    """A `.glc` file cannot be decoded; the message says why. Subclasses tell the reasons apart."""


class NotGlcError(BitstreamError):
    """The data are empty or begin like no `.glc` file."""


class TruncatedError(BitstreamError):
    """The file ends within its header."""


class DamagedError(BitstreamError):
    """The checksum does not fit the content, or the content does not decode: cut short or changed."""


class NewerVersionError(BitstreamError):
    """The file was written by a later version of the format."""


class WrongWeightsError(BitstreamError):
    """The file was written with another model."""


class SizeLimitError(BitstreamError):
    """The image is larger than the limit; nothing was allocated for it."""


class TargetError(ValueError):
    """No quality reaches the size asked for; the message names the nearest that one does."""


class WeightsError(ValueError):
    """A file is not the weights of a codec; the message names it and says why."""


class ArchitectureError(ValueError):
    """A description names a network that is not known or trusted, or arguments that it does not take."""


class OverBudgetError(ValueError):
    """A network would be larger than the tensors that are to fill it."""


class TableError(ValueError):
    """Stored frequency tables are not tables."""


class InexactError(ValueError):
    """A network, or a device, cannot compute the probabilities exactly, in integers."""


class NotFiniteError(ValueError):
    """A latent is not that of an image: its pixels are not finite."""


class MemoryLimitError(ValueError):
    """An image needs more memory than may be used."""


class ImageError(ValueError):
    """An image cannot be read; the message starts with its name."""


class ListingError(ValueError):
    """A source of images does not exist or holds none; the message names it."""


class SettingError(ValueError):
    """A setting of a training run cannot be used; the message names its key, what is wrong and the fix."""
