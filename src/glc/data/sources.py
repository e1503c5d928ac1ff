"""Sources of images: values of `data.train` and `data.val`, lists of images, sample photographs.

| given                                             | read as                                              |
|---------------------------------------------------|------------------------------------------------------|
| folder with .tar, .tar.gz or .tgz files           | shards; checked against manifest.json if there       |
| other folder                                      | a plain image folder, recursive                      |
| .tar, .tar.gz or .tgz file, {000..009}, * and ?   | shards                                               |
| URL of a file, of any protocol of fsspec          | a shard, streamed; braces are expanded               |
| URL with *                                        | the shards that the store lists                      |
| URL that ends in / or manifest.json               | shards by manifest.json, else the listed ones        |
| pipe:COMMAND                                      | a shard: the output of the command                   |
| image                                             | the image                                            |
| other file                                        | a text file that lists images                        |
| `glc.data.hugging_face.HuggingFaceImages`         | the rows of a Hugging Face data set                  |

A list may name several, of all kinds. `list_sources` handles images only.
`sample_paths` finds photographs inside installed packages, for the demo and for tests.
"""

from __future__ import annotations

import codecs
import glob
import importlib.util
import logging
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias, cast, get_args

from glc.data.deadline import Watch
from glc.data.images import is_image_name, list_images, remedy
from glc.data.shard_writer import MANIFEST, PackError, read_manifest
from glc.data.urls import is_pattern
from glc.errors import ListingError
from glc.jobs.storage import expand, is_url
from glc.jobs.tar_shards import expand_braces

_log = logging.getLogger(__name__)
SHARD_SUFFIXES = (".tar", ".tar.gz", ".tgz")
_HOW_TO_PACK = "make them with `glc pack SOURCE DEST`, or correct the path"


class DataSet(Protocol):
    """A source that is an object instead of a name, such as `glc.data.hugging_face.HuggingFaceImages`."""

    def load(self, key: str, watch: Watch) -> Any:
        """Return a sequence of records, or a `RecordSource` that also has `first(limit)` and `describe()`.

        Args:
            key: config key, for messages.
            watch: to be told when data arrive.

        Raises:
            ValueError: it cannot be opened; the message starts with the key.
        """
        ...


Source: TypeAlias = str | os.PathLike[str] | DataSet


@dataclass
class Sources:
    """What config values name: shards, or images as (name, path), or an opened data set."""

    shards: list[str] = field(default_factory=list)
    """Local absolute paths and URLs."""
    images: list[tuple[str, Path]] = field(default_factory=list)
    rows: Any = None
    """The records of a data set, a sequence."""
    stream: Any = None
    """A streamed data set."""


def entries_of(given: Source | Iterable[Source] | None) -> list[Source]:
    """Return the entries of a config value, which may be one."""
    single = isinstance(given, (str, os.PathLike)) or hasattr(given, "load")
    return [cast(Source, given)] if single else list(cast(Iterable[Source], given or []))


def resolve(given: Source | Iterable[Source] | None, key: str, watch: Watch | None = None) -> Sources:
    """Find the shards and images, or the data set, that a config value names; no shard is read.

    Args:
        given: names, or one data set; see the module's table.
        key: the config key, for messages, such as "data.train".
        watch: is told when data arrive.

    Raises:
        ValueError: nothing given, nothing found, a local shard is missing, a store cannot be listed, a data
            set cannot be opened, or shards are mixed with images. The message starts with the key and names
            the fix.
    """
    found = Sources()
    missing: list[str] = []
    items = entries_of(given)
    if not items or not all(str(item) for item in items):
        raise ValueError(f"{key}: empty; give shards, a folder of images or a list")
    for item in items:
        if isinstance(item, (str, os.PathLike)):
            _add(os.path.expanduser(os.fspath(item)), key, found, missing)
            continue
        loaded = item.load(key, watch or Watch())
        return Sources(stream=loaded) if hasattr(loaded, "records") else Sources(rows=loaded)
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ValueError(f"{key}: {missing[0]}{more}: no such file or folder; {_HOW_TO_PACK}")
    if found.shards and found.images:
        raise ValueError(f"{key}: mixes shards with images; pack the images, or use only one kind")
    if not found.shards and not found.images:
        raise ValueError(f"{key}: no shards match {', '.join(map(str, items))}; {_HOW_TO_PACK}")
    return found


def _add(item: str, key: str, found: Sources, missing: list[str]) -> None:
    if os.path.exists(item):
        return _add_local(Path(item), key, found)
    try:
        names = expand_braces(item)
    except ValueError as error:
        raise ValueError(f"{key}: unbalanced braces in {item}; correct the pattern") from error
    for name in names:
        if is_url(name):
            found.shards += _listed(name, key)
        elif glob.has_magic(name):
            for path in sorted(glob.glob(name, recursive=True)):
                _add_local(Path(path), key, found)
        elif os.path.exists(name):
            _add_local(Path(name), key, found)
        else:
            missing.append(name)


def _listed(url: str, key: str) -> list[str]:
    """Return the shards of a URL: of a packed folder, of a pattern, or the URL itself."""
    given = url
    folder, _, name = url.rpartition("/")
    try:
        if name in ("", MANIFEST) and not url.startswith("pipe:"):
            try:
                shards = read_manifest(folder).shards
                return [f"{folder}/{shard.name}" for shard in shards if shard.count]
            except FileNotFoundError:
                if name:
                    raise
                url = f"{folder}/*"  # not packed by `glc pack`
        if not is_pattern(url):
            return [url]
        found = [path for path in expand(url) if path.lower().endswith(SHARD_SUFFIXES)]
    except (OSError, PackError) as error:
        raise ValueError(f"{key}: {given}: {error}; correct the URL") from error
    if not found:
        raise ValueError(f"{key}: no shards match {url}; correct the URL, or name the shards with braces")
    return found


def _add_local(path: Path, key: str, found: Sources) -> None:
    if path.is_dir():
        shards = _shards_in(path)
        if (path / ".packing").is_dir():
            raise ValueError(f"{key}: {path} is not completely packed; run the same `glc pack` again")
        if shards or (path / MANIFEST).is_file():
            found.shards += _checked(path, shards, key)
            return
    elif path.name.lower().endswith(SHARD_SUFFIXES):
        found.shards.append(str(path.absolute()))
        return
    elif not is_image_name(path.name) and path.name == MANIFEST:
        found.shards += _checked(path.parent, _shards_in(path.parent), key)
        return
    try:
        found.images += list_sources([path])
    except ListingError as error:
        raise ValueError(f"{key}: {error}; {_HOW_TO_PACK}") from error


def _shards_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.name.lower().endswith(SHARD_SUFFIXES))


def _checked(folder: Path, shards: Sequence[Path], key: str) -> list[str]:
    if not (folder / MANIFEST).is_file():
        return [str(path.absolute()) for path in shards]
    try:
        manifest = read_manifest(folder)
    except PackError as error:
        raise ValueError(f"{key}: {error}") from error
    for shard in manifest.shards:
        path = folder / shard.name
        if not path.is_file():
            raise ValueError(
                f"{key}: {path} is missing but listed in {MANIFEST}; copy it again, or pack with --force"
            )
        size = path.stat().st_size
        if size != shard.bytes:
            _log.warning("%s: %s has %d bytes, %s lists %d; using its readable part",
                         key, path, size, MANIFEST, shard.bytes)  # fmt: skip
    return [str((folder / shard.name).absolute()) for shard in manifest.shards if shard.count]


def list_sources(sources: Sequence[str | os.PathLike[str]]) -> list[tuple[str, Path]]:
    """Expand sources to (name, path) pairs.

    A folder stands for the images under it, an image for itself, any other file for a list: one path per
    line, relative to the list's folder; empty lines and lines starting with `#` are skipped.

    Raises:
        ListingError: a source or a listed file does not exist, or a source contains no image.
    """
    images: list[tuple[str, Path]] = []
    for source in map(Path, sources):
        if source.is_dir():
            found = [(path.relative_to(source).as_posix(), path) for path in list_images(source)]
        elif not source.is_file():
            raise ListingError(f"{source}: no such folder or file")
        elif is_image_name(source.name):
            found = [(source.name, source)]
        else:
            found = list(read_list(source))
        if not found:
            raise ListingError(f"{source}: contains no images (.jpg, .png, .webp, .tif, ...)")
        prefix = f"{source.resolve().name}/" if source.is_dir() and len(sources) > 1 else ""
        images += [(prefix + name, path) for name, path in found]
    if not images:
        raise ListingError("nothing to pack: give at least one folder, list or image")
    return images


def read_list(source: Path) -> Iterator[tuple[str, Path]]:
    r"""Read a text file that lists images, in the format of `list_sources`, as (name, path) pairs.

    Lists from Windows are read too: a byte order mark, UTF-16 with one, CRLF, `\` between folders. Of a table
    with tabs, the first column is read. Names that are not UTF-8 keep their bytes.

    Raises:
        ListingError: not a text file, or a listed file does not exist.
    """
    data = source.read_bytes()
    encoding = "utf-16" if data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"
    try:
        text = data.decode(encoding, "surrogateescape" if encoding == "utf-8-sig" else "strict")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        hint = remedy(source.name)
        raise ListingError(
            f"{source}: neither an image nor a text file that lists images" + (f"; {hint}" if hint else "")
        )
    for number, line in enumerate(re.split("\r\n|\r|\n", text), 1):
        name = line.strip()
        if not name or name.startswith("#"):
            continue
        names = [name, column := name.split("\t")[0].rstrip(), column.replace("\\", "/")]
        found = next((given for given in names if (source.parent / given).is_file()), None)
        if found is None:
            raise ListingError(f"{source}, line {number}: no such file: {name}")
        name, path = found, source.parent / found
        # Absolute paths are specific to the machine, so only the file's name is kept.
        yield (Path(name).name if Path(name).is_absolute() else name), path


Split = Literal["train", "test"]

# (module, distribution to install, file inside the module's folder)
_SKIMAGE = ("skimage", "scikit-image", "data/{}")
_SKLEARN = ("sklearn", "scikit-learn", "datasets/images/{}")
_MATPLOTLIB = ("matplotlib", "matplotlib", "mpl-data/sample_data/{}")

_SAMPLES: dict[str, list[tuple[tuple[str, str, str], str]]] = {
    "train": [
        (_SKIMAGE, "astronaut.png"),
        (_SKIMAGE, "coffee.png"),
        (_SKIMAGE, "motorcycle_left.png"),
        (_SKIMAGE, "motorcycle_right.png"),
        (_SKIMAGE, "rocket.jpg"),
        (_SKLEARN, "china.jpg"),
    ],
    "test": [(_SKIMAGE, "chelsea.png"), (_SKLEARN, "flower.jpg"), (_MATPLOTLIB, "grace_hopper.jpg")],
}


def sample_paths(split: Split) -> list[Path]:
    """Return the paths of the photographs of one split, always in the same order.

    Only the files are looked up; the packages are not imported. The splits are fixed and have no scene
    in common (the left and the right motorcycle are one scene).

    Raises:
        ValueError: unknown split.
        FileNotFoundError: a package that contains some of them is missing; the message names it.
    """
    if split not in _SAMPLES:
        raise ValueError(f"unknown split {split!r}: choose one of {', '.join(get_args(Split))}")
    return [_locate(*package, name) for package, name in _SAMPLES[split]]


def _locate(module: str, distribution: str, folder: str, name: str) -> Path:
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise FileNotFoundError(
            f"sample photograph {name}: its package {distribution} is not installed; run "
            f"pip install {distribution}"
        )
    path = Path(spec.origin).parent / folder.format(name)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: missing in this version of {distribution}; install another version")
    return path
