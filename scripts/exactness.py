"""Show that files decode to the same integers under every setting, on every device, in every environment.

    python scripts/exactness.py encode --weights W --synthetic 4 --output DIR [--device cuda]
    python scripts/exactness.py verify --weights W --input DIR [--output DIR] [--device cuda]
    python scripts/exactness.py matrix --weights W --synthetic 4 --output DIR

`encode` writes `.glc` files and `symbols.json`, the hashes of the integers that the encoder chose. `verify`
decodes them under every setting that this device has and compares; its folder may come from another machine,
another version of torch or another device. `matrix` encodes under every setting and decodes each of these
files under every setting. All print a table; the exit status is 1 when anything differs.

Settings: {1, 2 threads} x {oneDNN on, off} on the CPU, {TF32 on, off} on a GPU, x {contiguous,
channels-last weights} x {alone, in a batch of 3}; and {all, the plainest instructions of the processor},
which only a new process can change. Needs no more than glc's core dependencies.
"""

import argparse
import contextlib
import hashlib
import itertools
import json
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from roundtrips import encoder_symbols  # beside this file

import glc
from glc.codec.bitstream import unpack
from glc.codec.images import padded_size
from glc.data.images import list_images, read_rgb

BATCH = 3
NO_LIMIT = 1 << 62
DIGESTS = "symbols.json"
SIZES = ((256, 256), (131, 67), (96, 200), (1, 1), (65, 320), (320, 240))
"""Height and width of the synthetic pictures, over and over."""
# Read by torch, oneDNN and MKL when they start: no vector instructions beyond what every x86-64 has.
PLAIN = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"}


@dataclass(frozen=True)
class Setting:
    """How the networks run; it must not matter."""

    threads: int
    fast: bool
    """On the CPU oneDNN, on a GPU TF32."""
    channels_last: bool
    batch: int

    def describe(self, cuda: bool) -> str:
        """Return the setting in words."""
        fast = ("TF32" if cuda else "oneDNN") + (" on" if self.fast else " off")
        layout = "channels last" if self.channels_last else "contiguous"
        threads = [] if cuda else [f"{self.threads} thread" + "s" * (self.threads > 1)]
        return ", ".join([*threads, fast, layout, "alone" if self.batch == 1 else f"batch of {self.batch}"])


def settings(cuda: bool) -> list[Setting]:
    """Return every setting that a process can choose."""
    values = ((1,) if cuda else (1, 2), (True, False), (False, True), (1, BATCH))
    return list(itertools.starmap(Setting, itertools.product(*values)))


@contextlib.contextmanager
def under(codec: glc.Codec, setting: Setting) -> Iterator[None]:
    """Let the codec's networks run under a setting while in the context."""
    layout = torch.channels_last if setting.channels_last else torch.contiguous_format
    codec.model.to(memory_format=layout)
    threads = torch.get_num_threads()
    torch.set_num_threads(setting.threads)
    try:
        if codec.device.type == "cuda":
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = setting.fast
            yield
        else:
            with torch.backends.mkldnn.flags(enabled=setting.fast):
                yield
    finally:
        torch.set_num_threads(threads)


def digest(symbols: glc.Symbols, index: int) -> str:
    """Return the SHA-256 of one picture's integers and their shapes."""
    found = hashlib.sha256()
    for values in (symbols.z[index], symbols.y[index]):
        found.update(repr(tuple(values.shape)).encode())
        found.update(values.numpy().astype("<i4").tobytes())
    return found.hexdigest()


def synthetic(count: int) -> Iterator[tuple[str, Image.Image]]:
    """Yield pictures with slopes, waves, edges and texture, the same everywhere."""
    for i in range(count):
        height, width = SIZES[i % len(SIZES)]
        raw = np.random.PCG64(i).random_raw(height * width * 3).reshape(height, width, 3)
        rows, cols = np.arange(height)[:, None, None], np.arange(width)[None, :, None]
        slope = (rows * (i + 1) + cols * 2 + np.array([0, 50, 110])) % 256
        boxes = ((rows // 20 + cols // 31 + i) % 2) * 70
        values = (slope + boxes) * 3 // 5 + (raw >> 58).astype(np.int64) * ((cols // 48) % 2)
        yield f"synthetic{i}", Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))


def from_folder(folder: Path, limit: int | None, crop: int | None) -> Iterator[tuple[str, Image.Image]]:
    """Yield the pictures of a folder, or the middles of them."""
    for path in list_images(folder)[:limit]:
        image = read_rgb(path)
        if crop is not None:
            left, top = max(0, image.width - crop) // 2, max(0, image.height - crop) // 2
            image = image.crop((left, top, min(image.width, left + crop), min(image.height, top + crop)))
        yield path.relative_to(folder).as_posix().replace("/", "_"), image


def batches(members: Mapping[str, tuple[int, int]], size: int) -> Iterator[list[str]]:
    """Yield names of equal padded size together, filled up with repetitions where there are too few."""
    groups: dict[tuple[int, int], list[str]] = {}
    for name, padded in members.items():
        groups.setdefault(padded, []).append(name)
    for names in groups.values():
        for start in range(0, len(names), size):
            chosen = names[start : start + size]
            yield [chosen[k % len(chosen)] for k in range(size)]


def encode_all(
    codec: glc.Codec,
    images: dict[str, Image.Image],
    qualities: Sequence[float],
    setting: Setting,
    folder: Path,
) -> dict[str, str]:
    """Write a file per picture and quality; return their names and the hashes of the encoder's integers."""
    folder.mkdir(parents=True, exist_ok=True)
    digests = {}
    stride = codec.model.stride
    sizes = {name: padded_size(image.height, image.width, stride) for name, image in images.items()}
    with under(codec, setting), encoder_symbols(codec) as seen:
        for names, quality in itertools.product(list(batches(sizes, setting.batch)), qualities):
            files = codec.compress_batch([images[name] for name in names], quality)
            symbols = seen.pop()
            for i, (name, data) in enumerate(zip(names, files, strict=True)):
                file = f"{name}_q{quality:g}.glc"
                (folder / file).write_bytes(data)
                digests[file] = digest(symbols, i)
    return digests


def decode_all(codec: glc.Codec, files: dict[str, bytes], setting: Setting) -> dict[str, str]:
    """Return the hashes of the decoded integers, or what went wrong; all members of a batch are checked."""
    headers = {name: unpack(data, NO_LIMIT)[0] for name, data in files.items()}
    sizes = {name: padded_size(h.height, h.width, codec.model.stride) for name, h in headers.items()}
    digests: dict[str, str] = {}
    with under(codec, setting), torch.inference_mode():
        for names in batches(sizes, setting.batch):
            try:
                # Nothing public decodes the integers of several files together.
                opened = codec._open([files[name] for name in names], NO_LIMIT)
                symbols = codec._decode(*opened).symbols
                found = [digest(symbols, i) for i in range(len(names))]
            except glc.BitstreamError as error:
                found = [f"{type(error).__name__}: {error}"] * len(names)
            else:
                if len(names) == 1:
                    header = headers[names[0]]
                    again = codec.from_symbols(symbols, (header.height, header.width), header.rate)
                    if again != files[names[0]]:
                        found = ["the same integers give other bytes"]
            for name, value in zip(names, found, strict=True):
                digests[name] = value if digests.get(name, value) == value else "differs within a batch"
    return digests


def environment(codec: glc.Codec) -> dict[str, str]:
    """Return what figures are taken with."""
    device = f"cpu, {torch.backends.cpu.get_cpu_capability()}"
    if codec.device.type == "cuda":
        device = torch.cuda.get_device_name(codec.device)
    return {"torch": torch.__version__, "numpy": np.__version__, "device": device}


def read_sets(folder: Path) -> tuple[dict[str, bytes], dict[str, str], dict[str, int]]:
    """Return all files below a folder, their hashes, and how often each occurs; equal files are one.

    Raises:
        ValueError: when `encode` wrote nothing there, or encoders hash one file in two ways.
    """
    files: dict[str, bytes] = {}
    expected: dict[str, str] = {}
    times: dict[str, int] = {}
    for note in sorted(folder.rglob(DIGESTS)):
        for name, value in json.loads(note.read_text())["symbols"].items():
            data = (note.parent / name).read_bytes()
            key = f"{name} {hashlib.sha256(data).hexdigest()[:8]}"
            if expected.setdefault(key, value) != value:
                raise ValueError(
                    f"{note.parent / name}: two encoders wrote the same bytes for other integers"
                )
            files[key] = data
            times[key] = times.get(key, 0) + 1
    if not files:
        raise ValueError(f"{folder}: holds nothing that `encode` wrote")
    return files, expected, times


def pictures_of(arguments: argparse.Namespace) -> dict[str, Image.Image]:
    """Return the pictures that the command line names.

    Raises:
        ValueError: when there are none.
    """
    if arguments.synthetic:
        return dict(synthetic(arguments.synthetic))
    images = dict(from_folder(arguments.pictures, arguments.limit, arguments.crop))
    if not images:
        raise ValueError(f"{arguments.pictures}: holds no pictures")
    return images


def encode(arguments: argparse.Namespace) -> int:
    """Write files and hashes: under the one setting named, or under all of them."""
    codec = glc.load(arguments.weights, arguments.device)
    cuda = codec.device.type == "cuda"
    images = pictures_of(arguments)
    if arguments.output.exists() and any(arguments.output.iterdir()):
        raise ValueError(f"{arguments.output}: not empty; name a new folder")
    one = Setting(arguments.threads, fast=True, channels_last=False, batch=1)
    for k, setting in enumerate(settings(cuda) if arguments.all_settings else [one]):
        folder = arguments.output / f"encoder{k:02d}" if arguments.all_settings else arguments.output
        digests = encode_all(codec, images, arguments.qualities, setting, folder)
        how = {"setting": setting.describe(cuda), **environment(codec)}
        about = {"fingerprint": codec.weights.fingerprint, **how, "symbols": digests}
        (folder / DIGESTS).write_text(json.dumps(about, indent=2) + "\n")
        print(f"{len(digests)} files under {how['setting']}; {how['device']}")
    return 0


def decode(arguments: argparse.Namespace) -> int:
    """Decode under every setting of this process, and write the rows of the table."""
    codec = glc.load(arguments.weights, arguments.device)
    files, expected, times = read_sets(arguments.input)
    about = {**environment(codec), "files": sum(times.values()), "distinct": len(files)}
    cuda = codec.device.type == "cuda"
    rows = []
    for setting in settings(cuda):
        found = decode_all(codec, files, setting)
        different = {name: found[name] for name in files if found[name] != expected[name]}
        described = f"{setting.describe(cuda)}; {about['device']}"
        rows.append({"setting": described, "different": different, **about})
    arguments.result.write_text(json.dumps(rows))
    return 0


def processes(arguments: argparse.Namespace, *words: Any) -> Iterator[int]:
    """Run this script in one process after the other, yielding each one's number after it; "{}" is that."""
    command = [sys.executable, __file__, *words, "--weights", arguments.weights, "--device", arguments.device]
    for k, variables in enumerate([{}] if arguments.device.startswith("cuda") else [{}, PLAIN]):
        numbered = [str(word).replace("{}", str(k)) for word in command]
        subprocess.run(numbered, check=True, env={**os.environ, **variables})
        yield k


def verify(arguments: argparse.Namespace) -> int:
    """Decode under every setting, print the table, and return the exit status."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        result = Path(scratch) / "rows.json"
        for _ in processes(arguments, "decode", "--input", arguments.input, "--result", result):
            rows += json.loads(result.read_text())
    width = max(len(row["setting"]) for row in rows)
    print(f"{'decoded under':{width}}  files  distinct  different")
    for row in rows:
        print(f"{row['setting']:{width}}  {row['files']:5}  {row['distinct']:8}  {len(row['different']):9}")
        for name, found in list(row["different"].items())[:3]:
            print(f"    {name}: {found}")
    wrong = sum(len(row["different"]) for row in rows)
    print(f"torch {rows[0]['torch']}: {len(rows)} settings, {wrong} differences")
    name = f"verified_torch{rows[0]['torch'].split('+')[0]}_{arguments.device.replace(':', '')}.json"
    folder = arguments.output or arguments.input
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(rows, indent=2) + "\n")
    return 1 if wrong else 0


def matrix(arguments: argparse.Namespace) -> int:
    """Encode under every setting, then decode each of the files under every setting."""
    words: list[Any] = ["encode", "--all-settings", "--output", arguments.output / "process{}", "--qualities"]
    words += arguments.qualities
    for name in ("pictures", "synthetic", "limit", "crop"):
        if getattr(arguments, name) is not None:
            words += [f"--{name}", getattr(arguments, name)]
    for k in processes(arguments, *words):
        print(f"process {k} has encoded")
    arguments.input = arguments.output
    return verify(arguments)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    for command in (encode, verify, matrix, decode):
        sub = commands.add_parser(command.__name__, description=command.__doc__)
        sub.set_defaults(run=command)
        sub.add_argument("--weights", required=True, help="weights file, or a model's name")
        sub.add_argument("--device", default="cpu", help="cpu or cuda (%(default)s)")
        if command in (encode, matrix):
            source = sub.add_mutually_exclusive_group(required=True)
            source.add_argument("--pictures", type=Path, help="folder of pictures")
            source.add_argument("--synthetic", type=int, metavar="N", help="make N pictures instead")
            sub.add_argument("--limit", type=int, help="first pictures of the folder only")
            sub.add_argument("--crop", type=int, help="side of the middle to take of each picture")
            sub.add_argument("--qualities", type=float, nargs="+", default=[0, 37, 100])
            sub.add_argument("--output", type=Path, required=True, help="folder for the files")
        else:
            sub.add_argument("--input", type=Path, required=True, help="folder that encode wrote")
        if command is encode:
            sub.add_argument("--threads", type=int, default=1)
            sub.add_argument("--all-settings", action="store_true", help="one folder per setting")
        if command is verify:
            sub.add_argument("--output", type=Path, help="folder for the table as JSON (default: --input)")
        if command is decode:
            sub.add_argument("--result", type=Path, required=True, help="where to write the table's rows")
    return parser.parse_args()


def main() -> int:
    """Run from the command line; return the exit status."""
    arguments = parse()
    # Reading the flags of oneDNN makes some versions of torch say that there is no TF32 here.
    warnings.filterwarnings("ignore", message="TF32 acceleration")
    try:
        return int(arguments.run(arguments))
    except subprocess.CalledProcessError as error:  # the process has said why
        return error.returncode
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
