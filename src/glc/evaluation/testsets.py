"""Sets of images to evaluate on, in folders or in shards: what belongs to them and how they are prepared."""

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from glc.data.images import list_images, read_rgb
from glc.errors import ImageError
from glc.jobs.tar_shards import Shard, find_shards


class SetError(ValueError):
    """What was named is not the set of images that it should be; the message says what to do."""


@dataclass(frozen=True)
class ImageFile:
    """One image of a set."""

    name: str
    """Path inside the set, without its suffix unless another image differs in nothing else."""
    path: Path


@dataclass(frozen=True)
class Preprocess:
    """What is done to each image of a set before it counts as the original.

    Args:
        name: of the set.
        sizes: `[width, height]` of its images once prepared, one of these; None: any.
        resize: scale to this short side, in pixels, with a Lanczos filter, where it differs; None: not.
        center_crop: then crop a square of this side from the centre, in pixels; None: not.
    """

    name: str
    sizes: Sequence[Sequence[int]] | None = None
    resize: int | None = None
    center_crop: int | None = None

    def apply(self, image: Image.Image, where: str) -> Image.Image:
        """Return the original of an image that was read from `where`, mode RGB.

        Raises:
            ImageError: it does not have a size of the set.
        """
        if self.resize is not None and min(image.size) != self.resize:
            scale = self.resize / min(image.size)
            size = (round(image.width * scale), round(image.height * scale))
            image = image.resize(size, Image.Resampling.LANCZOS)
        if self.center_crop is not None:
            left, top = (image.width - self.center_crop) // 2, (image.height - self.center_crop) // 2
            if min(left, top) < 0:
                raise ImageError(
                    f"{where}: {image.width}x{image.height} pixels, less than the crop of {self.center_crop}"
                )
            image = image.crop((left, top, left + self.center_crop, top + self.center_crop))
        if self.sizes and image.size not in {tuple(size) for size in self.sizes}:
            allowed = " or ".join(f"{width}x{height}" for width, height in self.sizes)
            raise ImageError(
                f"{where}: {image.width}x{image.height} pixels, those of {self.name} have {allowed}"
            )
        return image

    def as_dict(self) -> dict[str, int | None]:
        """Return what is done, for the record."""
        return {"resize": self.resize, "center_crop": self.center_crop}


class ImageSet:
    """The images under a folder, as a known set or as they are.

    Args:
        path: the folder.
        name: of the set.
        count: number of images that the set has; None takes what is there.
        source: where to get the set.
        license: its terms.
        pattern: names of the set's images without suffix, such as `kodim{:02d}`, to tell which are missing.
        first: number of the first image in `pattern`.
        sizes: see `Preprocess`.
        resize: see `Preprocess`.
        center_crop: see `Preprocess`.
        limit: take only so many images, drawn by a hash of their names and `seed`; None: all.
        seed: of the draw.

    Attributes:
        images: sorted by name.
        missing: name and reason of each image that the set has and the folder lacks.

    Raises:
        SetError: the folder does not exist, holds no images, or more of them than the set has.
    """

    def __init__(
        self,
        path: str | Path | None,
        name: str = "folder",
        count: int | None = None,
        source: str = "",
        license: str = "",
        pattern: str | None = None,
        first: int = 1,
        sizes: Sequence[Sequence[int]] | None = None,
        resize: int | None = None,
        center_crop: int | None = None,
        limit: int | None = None,
        seed: int = 0,
    ) -> None:
        if path is None:
            raise SetError(f"testset.path is not given: name the folder of {name}, testset.path=DIR")
        self.name, self.path, self.count = name, Path(path), count
        self.source, self.license = source, license
        self.preprocess = Preprocess(name, sizes, resize, center_crop)
        self.limit, self.seed = limit, seed
        hint = f"; get {name} from {source}, or name another folder" if source else ""
        try:
            files = list_images(self.path)
        except NotADirectoryError:
            raise SetError(f"testset.path={path}: no such folder{hint}") from None
        if not files:
            raise SetError(f"testset.path={path}: no images in it{hint}")
        self.images = _named(files, self.path)
        self.missing = self._find_missing(pattern, first)
        if limit is not None:
            if limit < 1:
                raise SetError(f"testset.limit={limit}: give a positive number of images, or null for all")
            drawn = sorted(self.images, key=lambda p: _hash(f"{seed}/{p.name}".encode()))[:limit]
            self.images = sorted(drawn, key=lambda p: p.name)
            self.missing = []

    def _find_missing(self, pattern: str | None, first: int) -> list[tuple[str, str]]:
        if self.count is None:
            return []
        found = len(self.images)
        if found > self.count:
            raise SetError(
                f"testset.path={self.path}: {found} images, and {self.name} has {self.count}: "
                "take the others away, or give testset=folder to measure all that is there"
            )
        if pattern is None:
            lacking = self.count - found
            reason = f"missing: {self.path} has {found} of the {self.count} images of {self.name}"
            return [(f"{lacking} unnamed", reason)] if lacking else []
        wanted = [pattern.format(number) for number in range(first, first + self.count)]
        there = {Path(image.name).name for image in self.images}
        strangers = sorted(there - set(wanted))
        if strangers:
            raise SetError(
                f"testset.path={self.path}: {strangers[0]} is none of {self.name}, whose images are called "
                f"{wanted[0]} to {wanted[-1]}: take it away, or give testset=folder"
            )
        return [(name, f"missing: not in {self.path}") for name in wanted if name not in there]

    def read(self, image: ImageFile) -> Image.Image:
        """Return an image, mode RGB, prepared as the set says.

        Raises:
            ImageError: it cannot be read, or is not of the set's size.
        """
        return self.preprocess.apply(read_rgb(image.path), str(image.path))

    def hashes(self) -> dict[str, str]:
        """Return the SHA-256 of each image's file, by name; `unreadable` where there is none."""
        found = {}
        for image in self.images:
            try:
                with image.path.open("rb") as file:
                    found[image.name] = hashlib.file_digest(file, "sha256").hexdigest()
            except OSError:
                found[image.name] = "unreadable"
        return found

    def preparation(self) -> dict[str, int | None]:
        """Return what is done to each image before it counts as the original."""
        return {**self.preprocess.as_dict(), "limit": self.limit, "seed": self.seed}


class ShardSet:
    """The images in tar shards: of each sample the first one.

    Args:
        path: shards: files, folders, `*`, braces as in `val-{0000..0099}.tar`, or a list of these.
        name: of the set.
        count: number of images that the set has; None takes what is there.
        source: where to get the set.
        license: its terms.
        sizes: see `Preprocess`.
        resize: see `Preprocess`.
        center_crop: see `Preprocess`.

    Raises:
        SetError: no shard is there.
        ValueError: the pattern matches nothing, or two shards have one name.
    """

    def __init__(
        self,
        path: str | Sequence[str],
        name: str = "shards",
        count: int | None = None,
        source: str = "",
        license: str = "",
        sizes: Sequence[Sequence[int]] | None = None,
        resize: int | None = None,
        center_crop: int | None = None,
    ) -> None:
        self.name, self.count, self.source, self.license = name, count, source, license
        self.preprocess = Preprocess(name, sizes, resize, center_crop)
        self.shards: Sequence[Shard] = find_shards([path] if isinstance(path, str) else list(path))
        self.missing: list[tuple[str, str]] = []
        if not any(shard.path.exists() for shard in self.shards):
            raise SetError(
                f"testset.path: {self.shards[0].path}: no such file, nor any of {len(self.shards)} shards"
            )


def are_shards(path: Any) -> bool:
    """Whether a path names shards: a list, a name that ends in .tar, or a folder of such without images."""
    if not isinstance(path, str | os.PathLike):
        return path is not None
    folder = Path(path).expanduser()
    if folder.suffix.lower() == ".tar":
        return True
    return folder.is_dir() and any(folder.glob("*.tar")) and not list_images(folder)


def open_testset(path: Any, **options: Any) -> ImageSet | ShardSet:
    """Return the set that a path names, with the options of `ImageSet` or `ShardSet`.

    Raises:
        SetError: an option only applies to a folder, or see the two classes.
    """
    if not are_shards(path):
        return ImageSet(path, **options)
    for key in ("limit", "pattern"):
        if options.pop(key, None) is not None:
            raise SetError(
                f"testset.{key} goes with a folder of images: for shards give testset=shards, "
                f"with testset.resize and so on where the set needs them, or testset.{key}=null"
            )
    options = {key: value for key, value in options.items() if key not in ("first", "seed")}
    if options.get("name") == "folder":
        del options["name"]
    return ShardSet(path, **options)


def _named(files: Sequence[Path], root: Path) -> list[ImageFile]:
    whole = [file.relative_to(root) for file in files]
    stems = Counter(inside.with_suffix("") for inside in whole)
    names = [inside.with_suffix("") if stems[inside.with_suffix("")] == 1 else inside for inside in whole]
    if len(set(names)) < len(names):  # a.png, a.jpg and a.png.webp
        names = whole
    images = [ImageFile(name.as_posix(), file) for name, file in zip(names, files, strict=True)]
    return sorted(images, key=lambda image: image.name)


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
