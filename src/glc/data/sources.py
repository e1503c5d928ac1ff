"""What `data.train` and `data.val` may name, and how it is recognised.

| given                                              | taken as                                       |
|----------------------------------------------------|------------------------------------------------|
| folder with .tar files                             | shards; checked against manifest.json if there |
| other folder                                       | a plain image folder, recursive                |
| .tar file, pattern with {000..009} or * and ?      | shards                                         |
| URL (https://, gs://, file://, pipe: ...)          | shards, braces expanded; opened when read      |
| picture                                            | itself                                         |
| other file                                         | a text file that lists pictures                |

Several may be given as a list, as long as all are shards or none is.
"""

from __future__ import annotations

import glob
import logging
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from braceexpand import braceexpand

from glc.data.images import is_image_name
from glc.data.listing import ListingError, list_sources
from glc.data.manifest import MANIFEST, PackError, read_manifest

_log = logging.getLogger(__name__)
_URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+:")
_HOW_TO_PACK = "make them with `glc pack SOURCE DEST`, or correct the path"


@dataclass
class Sources:
    """What was found: shards (local absolute paths and URLs), or pictures as (name, path); never both."""

    shards: list[str] = field(default_factory=list)
    pictures: list[tuple[str, Path]] = field(default_factory=list)


def is_url(name: str) -> bool:
    """Whether a shard's name is a URL and not a local path."""
    return _URL.match(name) is not None


def resolve(given: str | os.PathLike[str] | Iterable[str | os.PathLike[str]] | None, key: str) -> Sources:
    """Find the shards or pictures that a config value names.

    Args:
        given: one name or several, or nothing, which is an error; see the module's table.
        key: the config key, for messages, such as "data.train".

    Raises:
        ValueError: nothing given, nothing found, a local shard is missing, or shards are mixed with pictures.
            The message starts with the key and says what to do.
    """
    items = [given] if isinstance(given, (str, os.PathLike)) else list(given or [])
    if not items or not all(str(item) for item in items):
        raise ValueError(f"{key}: is empty; give shards, a folder of pictures or a list")
    found = Sources()
    missing: list[str] = []
    for item in items:
        _add(os.path.expanduser(os.fspath(item)), key, found, missing)
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ValueError(f"{key}: {missing[0]}{more}: no such file or folder; {_HOW_TO_PACK}")
    if found.shards and found.pictures:
        raise ValueError(f"{key}: mixes shards with pictures; pack the pictures, or list the two in two runs")
    if not found.shards and not found.pictures:
        raise ValueError(f"{key}: no shards match {', '.join(map(str, items))}; {_HOW_TO_PACK}")
    return found


def _add(item: str, key: str, found: Sources, missing: list[str]) -> None:
    if os.path.exists(item):
        return _add_local(Path(item), key, found)
    try:
        names = list(braceexpand(item))
    except ValueError as error:
        raise ValueError(f"{key}: unbalanced braces in {item}") from error
    for name in names:
        if is_url(name):
            found.shards.append(name)
        elif glob.has_magic(name):
            for path in sorted(glob.glob(name, recursive=True)):
                _add_local(Path(path), key, found)
        elif os.path.exists(name):
            _add_local(Path(name), key, found)
        else:
            missing.append(name)


def _add_local(path: Path, key: str, found: Sources) -> None:
    if path.is_dir():
        shards = sorted(path.glob("*.tar"))
        if (path / ".packing").is_dir():
            raise ValueError(f"{key}: {path} was not packed to the end; run the same `glc pack` again")
        if shards or (path / MANIFEST).is_file():
            found.shards += _checked(path, shards, key)
            return
    elif path.suffix.lower() == ".tar":
        found.shards.append(str(path.absolute()))
        return
    elif not is_image_name(path.name) and path.name == MANIFEST:
        found.shards += _checked(path.parent, sorted(path.parent.glob("*.tar")), key)
        return
    try:
        found.pictures += list_sources([path])
    except ListingError as error:
        raise ValueError(f"{key}: {error}; {_HOW_TO_PACK}") from error


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
                f"{key}: {path} is missing, though {MANIFEST} lists it; copy it again, or pack with --force"
            )
        size = path.stat().st_size
        if size != shard.bytes:
            _log.warning("%s: %s has %d bytes, %s says %d; using what is readable of it",
                         key, path, size, MANIFEST, shard.bytes)  # fmt: skip
    return [str((folder / shard.name).absolute()) for shard in manifest.shards if shard.count]
