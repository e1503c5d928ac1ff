"""Encode and decode files under every setting of torch, in this process and in one with other instructions.

As a program, `python -m tests.stress.symbols WEIGHTS IMAGES COUNT FOLDER OTHERS...` encodes into FOLDER,
decodes the files there and in OTHERS and prints the differences. `PLAIN` is its environment: the variables
are read when a process starts.
"""

import contextlib
import itertools
import json
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

import glc
from glc.codec.bitstream import unpack
from glc.data.images import list_images, padded_size, read_rgb
from tests.codec.fixed_model import fixed_image
from tests.programs import load_script

BATCH = 3
NO_LIMIT = 1 << 62
DIGESTS = "symbols.json"
QUALITIES = (0, 37, 100)
SIZES = ((131, 67), (1, 1), (96, 200), (65, 320), (256, 256), (320, 240))
"""Height and width of the generated images."""
# Read by torch, oneDNN and MKL at start: only the vector instructions of every x86-64.
PLAIN = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"}

digest = load_script("ship_model").digest


@dataclass(frozen=True)
class Setting:
    """A way to run the networks; integers must not depend on it."""

    threads: int
    fast: bool
    """On the CPU oneDNN, on a GPU TF32."""
    channels_last: bool
    batch: int


def settings(cuda: bool) -> list[Setting]:
    """Return all settings that a process can choose."""
    values = ((1,) if cuda else (1, 2), (True, False), (False, True), (1, BATCH))
    return list(itertools.starmap(Setting, itertools.product(*values)))


@contextlib.contextmanager
def under(codec: glc.Codec, setting: Setting) -> Iterator[None]:
    """Run the codec's networks under a setting within the context."""
    codec.model.to(memory_format=torch.channels_last if setting.channels_last else torch.contiguous_format)
    threads, matmul, cudnn = torch.get_num_threads(), torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    torch.set_num_threads(setting.threads)
    try:
        with warnings.catch_warnings():
            # Reading oneDNN's flags makes some versions of torch warn that TF32 is not available.
            warnings.filterwarnings("ignore", message="TF32 acceleration")
            if codec.device.type == "cuda":
                matmul.allow_tf32 = cudnn.allow_tf32 = setting.fast
                yield
            else:
                with torch.backends.mkldnn.flags(enabled=setting.fast):
                    yield
    finally:
        torch.set_num_threads(threads)
        matmul.allow_tf32, cudnn.allow_tf32 = before


@contextlib.contextmanager
def encoder_symbols(codec: glc.Codec) -> Iterator[list[glc.Symbols]]:
    """Collect the symbols that the codec encodes within the context."""
    latent_codec: Any = codec.latent_codec
    seen: list[glc.Symbols] = []
    encode = latent_codec.encode

    def note(*given: Any) -> tuple[list[bytes], glc.Symbols]:
        payloads, symbols = encode(*given)
        seen.append(symbols)
        return payloads, symbols

    latent_codec.encode = note
    try:
        yield seen
    finally:
        latent_codec.encode = encode


def digests_of(symbols: glc.Symbols) -> list[str]:
    """Return the SHA-256 of the integers of each image in a batch."""
    return [digest(glc.Symbols(symbols.z[i : i + 1], symbols.y[i : i + 1])) for i in range(len(symbols.z))]


def batches(sizes: dict[str, tuple[int, int]], size: int) -> Iterator[list[str]]:
    """Yield batches of names of equal padded size, filled by repetition."""
    groups: dict[tuple[int, int], list[str]] = {}
    for name, padded in sizes.items():
        groups.setdefault(padded, []).append(name)
    for names in groups.values():
        for start in range(0, len(names), size):
            chosen = names[start : start + size]
            yield [chosen[k % len(chosen)] for k in range(size)]


def images_of(folder: Path | None, count: int) -> dict[str, Image.Image]:
    """Return the first images of a folder, or generated ones."""
    if folder is not None:
        return {path.stem: read_rgb(path) for path in list_images(folder)[:count]}
    sizes = itertools.islice(itertools.cycle(SIZES), count)
    return {f"made{i}": Image.fromarray(fixed_image(*size, i)) for i, size in enumerate(sizes)}


def write_files(codec: glc.Codec, images: dict[str, Image.Image], folder: Path) -> None:
    """Write files and hashes of the encoded integers under every setting, one folder per setting."""
    sizes = {k: padded_size(image.height, image.width, codec.model.stride) for k, image in images.items()}
    for number, setting in enumerate(settings(codec.device.type == "cuda")):
        place, noted = folder / f"{number:02d}", {}
        place.mkdir(parents=True)
        with under(codec, setting), encoder_symbols(codec) as seen:
            for names, quality in itertools.product(batches(sizes, setting.batch), QUALITIES):
                files = codec.compress_batch([images[name] for name in names], quality)
                for name, data, value in zip(names, files, digests_of(seen.pop()), strict=True):
                    noted[f"{name}_q{quality}.glc"] = value
                    (place / f"{name}_q{quality}.glc").write_bytes(data)
        (place / DIGESTS).write_text(json.dumps(noted))


def differences(codec: glc.Codec, folders: list[Path]) -> list[str]:
    """Decode all files in folders under every setting; return the files whose integers differ."""
    files: dict[str, bytes] = {}
    expected: dict[str, str] = {}
    for folder in folders:
        notes = sorted(folder.rglob(DIGESTS))
        assert notes, f"{folder}: no files of an encoder"
        for note in notes:
            for name, value in json.loads(note.read_text()).items():
                data = (note.parent / name).read_bytes()
                key = f"{name} {data.hex()[-8:]}"  # equal files end in the same checksum
                files[key] = data
                assert expected.setdefault(key, value) == value, f"{key}: equal bytes for different integers"
    headers = {name: unpack(data, NO_LIMIT)[0] for name, data in files.items()}
    sizes = {name: padded_size(h.height, h.width, codec.model.stride) for name, h in headers.items()}
    wrong = []
    for setting in settings(codec.device.type == "cuda"):
        with under(codec, setting), torch.inference_mode():
            for names in batches(sizes, setting.batch):
                decoded, _ = codec.entropy_decode([files[name] for name in names], max_pixels=NO_LIMIT)
                found = zip(names, digests_of(decoded.symbols), strict=True)
                wrong += [f"{name}, {setting}" for name, value in found if value != expected[name]]
                if len(names) == 1:
                    header = headers[names[0]]
                    size = header.height, header.width
                    again = codec.from_symbols(decoded.symbols, size, header.rate_index)
                    wrong += [f"{names[0]}, {setting}: other bytes"] * (again != files[names[0]])
    return wrong


def main(weights: str, images: str, count: str, folder: str, *others: str) -> None:
    """Encode into a folder, decode all files, print the differences."""
    codec = glc.load(weights, "cpu")
    write_files(codec, images_of(Path(images) if images else None, int(count)), Path(folder))
    print(json.dumps(differences(codec, [Path(folder), *map(Path, others)])))


if __name__ == "__main__":
    main(*sys.argv[1:])
