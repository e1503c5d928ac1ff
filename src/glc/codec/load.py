"""A codec from the names or files of its model and, where they are others, of its encoder and decoder."""

from pathlib import Path

import torch

from glc.codec.codec import Codec, choose_device
from glc.codec.weights.catalog import DEFAULT_MODEL, find
from glc.codec.weights.export import read_codec
from glc.codec.weights.file import Kind, Weights, read_weights
from glc.codec.weights.trust import Trust
from glc.codec.weights.variants import attach, read_variant


def load(
    model: str | Path = DEFAULT_MODEL,
    device: str | torch.device = "auto",
    *,
    encoder: str | Path | None = None,
    decoder: str | Path | None = None,
    precision: str = "auto",
    memory: int | str | None = None,
    trust: Trust = (),
) -> Codec:
    """Return the codec of a weights file or of a bundled model.

    Args:
        model: a file, or a name (`glc models` lists them), by default the bundled codec; or a checkpoint of
            stage II or III, or the folder of its run, for the codec that `glc export` would make of it.
        device: "cpu", "cuda", or "auto" for a GPU if there is one.
        encoder: file or name of an encoder variant for this model (restoration, for example) to compress
            with.
        decoder: file or name of a decoder variant (stylization, for example) to decompress with.
        precision: "auto", "float32" or "bfloat16" for E and D; any precision reads any file.
        memory: memory limit in bytes or as text such as "8GB"; None for the available memory.
        trust: a package, or several, whose networks the files may name: importing it runs its code, see
            `glc.codec.weights.trust`.

    Raises:
        WeightsError: the model does not exist, its file cannot be used or names networks of a package that is
            not trusted, or the encoder or decoder was made for another model.
        ValueError: the device is not available, or the precision or memory limit is invalid.
    """
    trained = Path(model).suffix == ".ckpt" or (Path(model) / "checkpoints").is_dir()
    file = Path(model) if trained else find(model)
    return Codec(assemble(file, encoder, decoder, trust), choose_device(device), precision, memory)


def assemble(
    file: Path, encoder: str | Path | None = None, decoder: str | Path | None = None, trust: Trust = ()
) -> Weights:
    """Return the weights in a codec's file, with an encoder or decoder variant in place of its own.

    Tensors are memory-mapped where possible, see `glc.codec.weights.mmap`.
    """
    trained = file.suffix == ".ckpt" or file.is_dir()
    weights = read_codec(file, trust) if trained else read_weights(file, mapped=True, trust=trust)
    named: list[tuple[Kind, str | Path | None]] = [("encoder", encoder), ("decoder", decoder)]
    chosen = [(find(name, kind), kind) for kind, name in named if name is not None]
    return attach(weights, *(read_variant(path, kind, mapped=True, trust=trust) for path, kind in chosen))
