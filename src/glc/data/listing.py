"""Which pictures a folder, a list file or a picture stands for, and under which names."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from glc.data.images import is_image_name, list_images


class ListingError(ValueError):
    """A source of pictures does not exist or holds none; the message names it."""


def list_sources(sources: Sequence[str | os.PathLike[str]]) -> list[tuple[str, Path]]:
    """Expand sources to (name to keep, path) pairs.

    A folder stands for the pictures under it, a picture for itself, any other file for a list: one path per
    line, relative to the list's folder; empty lines and lines starting with `#` are skipped.

    Raises:
        ListingError: a source or a listed file does not exist, or a source holds no picture.
    """
    pictures: list[tuple[str, Path]] = []
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
            raise ListingError(
                f"{source}: no pictures in it (looked for .jpg, .png, .webp, .tif and the like)"
            )
        prefix = f"{source.resolve().name}/" if source.is_dir() and len(sources) > 1 else ""
        pictures += [(prefix + name, path) for name, path in found]
    if not pictures:
        raise ListingError("nothing to pack: give at least one folder, list or picture")
    return pictures


def read_list(source: Path) -> Iterator[tuple[str, Path]]:
    """Read a text file that lists pictures as (name to keep, path) pairs; the format is `list_sources`'.

    Raises:
        ListingError: not a text file, or a listed file does not exist.
    """
    try:
        lines = source.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ListingError(f"{source}: neither a picture nor a text file that lists pictures") from error
    for number, line in enumerate(lines, 1):
        name = line.strip()
        if not name or name.startswith("#"):
            continue
        path = source.parent / name
        if not path.is_file():
            raise ListingError(f"{source}, line {number}: no such file: {name}")
        # Absolute paths say something about the machine, so only the file's name is kept of them.
        yield (Path(name).name if Path(name).is_absolute() else name), path
