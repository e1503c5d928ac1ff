"""Test sets in folders or shards: their images and preprocessing."""

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from glc.data.images import (
    ImageSource,
    Treatment,
    is_image_name,
    list_images,
    parse_background,
    read_rgb,
)
from glc.errors import ImageError
from glc.io.names import encode_text
from glc.jobs.storage import is_url
from glc.jobs.tar_shards import Shard, ShardError, find_shards

_TRIED = 3  # shards that are read before an evaluation starts


class SetError(ValueError):
    """A path does not contain the test set; the message has the fix."""


@dataclass(frozen=True)
class ImageFile:
    """An image of a set."""

    name: str
    """Path inside the set, without suffix unless that would be ambiguous."""
    path: Path


@dataclass(frozen=True)
class Preprocess:
    """Preprocessing of the images of a set; the result is the original of the evaluation.

    Args:
        name: name of the set.
        sizes: allowed `[width, height]` after preprocessing; None: any.
        resize: scale to this short side, in pixels, with a Lanczos filter; None: no scaling.
        center_crop: then crop a centred square of this side, in pixels; None: no cropping.
        background: colour behind transparent pixels.
    """

    name: str
    sizes: Sequence[Sequence[int]] | None = None
    resize: int | None = None
    center_crop: int | None = None
    background: str = "white"

    def read(self, source: ImageSource, where: str) -> tuple[Image.Image, list[str]]:
        """Read and preprocess an image; return it, mode RGB, and what reading did to it.

        Raises:
            ImageError: it cannot be read, or its size is not one of the set.
        """
        done: list[str] = []

        def report(name: str, treatment: Treatment) -> None:
            done.append(treatment.text)

        image = read_rgb(source, where, background=self.background, report=report)
        return self.apply(image, where), done

    def apply(self, image: Image.Image, where: str) -> Image.Image:
        """Preprocess an image that was read from `where`, mode RGB.

        Raises:
            ImageError: its size is not one of the set.
        """
        if self.resize is not None and min(image.size) != self.resize:
            scale = self.resize / min(image.size)
            size = (round(image.width * scale), round(image.height * scale))
            image = image.resize(size, Image.Resampling.LANCZOS)
        if self.center_crop is not None:
            left, top = (image.width - self.center_crop) // 2, (image.height - self.center_crop) // 2
            if min(left, top) < 0:
                raise ImageError(
                    f"{where}: {image.width}x{image.height} pixels, below the crop of {self.center_crop}"
                )
            image = image.crop((left, top, left + self.center_crop, top + self.center_crop))
        if self.sizes and image.size not in {tuple(size) for size in self.sizes}:
            allowed = " or ".join(f"{width}x{height}" for width, height in self.sizes)
            raise ImageError(
                f"{where}: {image.width}x{image.height} pixels, images of {self.name} have {allowed}"
            )
        return image

    def as_dict(self) -> dict[str, Any]:
        """Return the options, for the summary; the background if it is not white."""
        other = {} if self.background == "white" else {"background": self.background}
        return {"resize": self.resize, "center_crop": self.center_crop, **other}


class ImageSet:
    """The images under a folder, optionally checked against a known set.

    Args:
        path: the folder.
        name: name of the set.
        count: number of images of the set; None: any number.
        source: URL of the set.
        license: its terms.
        pattern: names of the set's images without suffix, such as `kodim{:02d}`, to detect missing ones.
        first: number of the first image in `pattern`.
        sizes: see `Preprocess`.
        resize: see `Preprocess`.
        center_crop: see `Preprocess`.
        background: see `Preprocess`.
        limit: sample this many images by a hash of their names and `seed`; None: all.
        seed: seed of the sample.

    Attributes:
        images: sorted by name.
        missing: name and reason of each image of the set that is not in the folder.

    Raises:
        SetError: the folder does not exist, or contains no images or more than the set.
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
        background: str = "white",
    ) -> None:
        if path is None:
            raise SetError(f"testset.path: not set; give the folder of {name}, testset.path=DIR")
        self.name, self.path, self.count = name, Path(path), count
        self.source, self.license = source, license
        self.preprocess = _preprocess(name, sizes, resize, center_crop, background)
        self.limit, self.seed = limit, seed
        hint = f"; get {name} from {source}, or give another folder" if source else ""
        try:
            files = list_images(self.path)
        except NotADirectoryError:
            raise SetError(f"testset.path={path}: no such folder{hint}") from None
        if not files:
            raise SetError(f"testset.path={path}: contains no images{hint}")
        self.images = _named(files, self.path)
        self.missing = self._find_missing(pattern, first)
        if limit is not None:
            if limit < 1:
                raise SetError(f"testset.limit={limit}: give a positive number of images, or null for all")
            sample = sorted(self.images, key=lambda p: _hash(encode_text(f"{seed}/{p.name}")))[:limit]
            self.images = sorted(sample, key=lambda p: p.name)
            self.missing = []

    def _find_missing(self, pattern: str | None, first: int) -> list[tuple[str, str]]:
        if self.count is None:
            return []
        found = len(self.images)
        if found > self.count:
            raise SetError(
                f"testset.path={self.path}: contains {found} images, but {self.name} has {self.count}; "
                "remove the others, or use testset=folder to measure all of them"
            )
        if pattern is None:
            number = self.count - found
            reason = f"missing: {self.path} has {found} of the {self.count} images of {self.name}"
            return [(f"{number} unnamed", reason)] if number else []
        wanted = [pattern.format(number) for number in range(first, first + self.count)]
        present = {Path(image.name).name for image in self.images}
        unknown = sorted(present - set(wanted))
        if unknown:
            raise SetError(
                f"testset.path={self.path}: {unknown[0]} does not belong to {self.name}, whose images are "
                f"{wanted[0]} to {wanted[-1]}; remove it, or use testset=folder"
            )
        return [(name, f"missing: not in {self.path}") for name in wanted if name not in present]

    def read(self, image: ImageFile) -> Image.Image:
        """Return a preprocessed image, mode RGB.

        Raises:
            ImageError: it cannot be read, or does not have the set's size.
        """
        return self.preprocess.read(image.path, str(image.path))[0]

    def hashes(self) -> dict[str, str]:
        """Return the SHA-256 of each image's file, by name; `unreadable` for files that cannot be read."""
        found = {}
        for image in self.images:
            try:
                with image.path.open("rb") as file:
                    found[image.name] = hashlib.file_digest(file, "sha256").hexdigest()
            except OSError:
                found[image.name] = "unreadable"
        return found

    def preparation(self) -> dict[str, Any]:
        """Return the preprocessing and sampling options, for the summary."""
        return {**self.preprocess.as_dict(), "limit": self.limit, "seed": self.seed}


class ShardSet:
    """The images in tar shards, one of each sample.

    Args:
        path: shards: files, folders, URLs, `*`, braces as in `val-{0000..0099}.tar`, or a list of these.
        name: name of the set.
        count: number of images of the set; None: any number.
        source: URL of the set.
        license: its terms.
        sizes: see `Preprocess`.
        resize: see `Preprocess`.
        center_crop: see `Preprocess`.
        background: see `Preprocess`.
        member: suffix of the image of a sample, such as `jpg` or `mask.png`; None: the first image.

    Raises:
        SetError: no shard exists, or none of the first three has an image (not tried at URLs).
        ValueError: the pattern matches nothing, or two shards have the same name.
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
        background: str = "white",
        member: str | None = None,
    ) -> None:
        self.name, self.count, self.source, self.license = name, count, source, license
        self.member = member
        self.preprocess = _preprocess(name, sizes, resize, center_crop, background)
        self.shards: Sequence[Shard] = find_shards([path] if isinstance(path, str) else list(path))
        self.missing: list[tuple[str, str]] = []
        if not any(shard.stamp() for shard in self.shards):
            raise SetError(
                f"testset.path: none of {len(self.shards)} shards exists (e.g. {self.shards[0].path}); "
                "correct the path"
            )
        if is_url(self.shards[0].path):
            return
        problems = list(map(_problem, self.shards[:_TRIED]))
        if None not in problems:
            raise SetError(f"testset.path: {problems[0]}; copy or pack it again, or correct the path")


def _problem(shard: Shard) -> str | None:
    """Return why no image of a shard can be read; None if one can."""
    try:
        for sample in shard.samples():
            if any(is_image_name(f"key.{suffix}") for suffix, _ in sample.files):
                return None
    except (ShardError, OSError) as error:
        return str(error)
    return f"{shard.path}: contains no image"


def _preprocess(
    name: str,
    sizes: Sequence[Sequence[int]] | None,
    resize: int | None,
    center_crop: int | None,
    background: str,
) -> Preprocess:
    try:
        parse_background(background)
    except ValueError as error:
        raise SetError(f"testset.background: {error}") from error
    return Preprocess(name, sizes, resize, center_crop, background)


def are_shards(path: Any) -> bool:
    """Whether a path names shards: a list, a name ending in .tar, or a folder of tar files without images."""
    if not isinstance(path, str | os.PathLike):
        return path is not None
    if is_url(str(path)):
        return True
    folder = Path(path).expanduser()
    if folder.suffix.lower() == ".tar":
        return True
    return folder.is_dir() and any(folder.glob("*.tar")) and not list_images(folder)


def open_testset(path: Any, **options: Any) -> ImageSet | ShardSet:
    """Return the set at a path, with the options of `ImageSet` or `ShardSet`.

    Raises:
        SetError: an option only applies to folders; or as in the two classes.
    """
    if not are_shards(path):
        if options.pop("member", None) is not None:
            raise SetError("testset.member: only applies to shards; omit it for a folder of images")
        return ImageSet(path, **options)
    for key in ("limit", "pattern"):
        if options.pop(key, None) is not None:
            raise SetError(
                f"testset.{key}: only applies to folders of images; for shards use testset=shards, "
                f"with testset.resize etc. as the set needs, or testset.{key}=null"
            )
    options = {key: value for key, value in options.items() if key not in ("first", "seed")}
    if options.get("name") == "folder":
        del options["name"]
    return ShardSet(path, **options)


def _named(files: Sequence[Path], root: Path) -> list[ImageFile]:
    paths = [file.relative_to(root) for file in files]
    stems = Counter(inside.with_suffix("") for inside in paths)
    names = [inside.with_suffix("") if stems[inside.with_suffix("")] == 1 else inside for inside in paths]
    if len(set(names)) < len(names):  # a.png, a.jpg and a.png.webp
        names = paths
    images = [ImageFile(name.as_posix(), file) for name, file in zip(names, files, strict=True)]
    return sorted(images, key=lambda image: image.name)


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
