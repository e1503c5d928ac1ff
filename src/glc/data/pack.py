"""`pack`: write folders or lists of images as WebDataset shards with a manifest.

Layout of a packed folder, NAME being the folder's own name:

    NAME-000000.tar  NAME-000001.tar ...   the shards
    manifest.json                          written last: its presence means the set is complete
    .packing/                              while packing: the state of the job (glc.jobs)

The shard and position of an image depend only on the list of names, so an interrupted run resumes where it
stopped and produces the same bytes.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glc.data.images import parse_background
from glc.data.shard_writer import (
    MANIFEST,
    Encoding,
    Entry,
    Manifest,
    PackError,
    ShardRecord,
    encode_sample,
    make_key,
    read_manifest,
)
from glc.data.sources import list_sources
from glc.io.atomic import write_text
from glc.jobs.engines import Engine
from glc.jobs.manifest import Folder, JobError, describe_differences
from glc.jobs.run import UnfinishedError, run
from glc.jobs.storage import Stamp
from glc.jobs.worker import Processed, SampleProcessor, ShardTask


@dataclass(frozen=True)
class PlannedShard:
    """A shard to write and its images."""

    name: str
    entries: Sequence[Entry]

    def size(self) -> int:
        """Return the number of its images."""
        return len(self.entries)

    def stamp(self) -> Stamp:
        """Return the number of its images; the settings of the set identify them."""
        return Stamp(len(self.entries), "")

    def samples(self) -> Iterator[Entry]:
        """Yield its images."""
        yield from self.entries


@dataclass(frozen=True)
class Packer(SampleProcessor):
    """Encodes images as samples. Called in each worker process, it returns itself."""

    encoding: Encoding

    def __call__(self, local_rank: int) -> Packer:
        """Return the packer of a process."""
        return self

    def process(self, sample: Entry) -> Processed:
        """Read and encode an image."""
        return Processed(encode_sample(sample, self.encoding))


_STATE = ".packing"
_REMEDY = "choose another destination, or replace them with --force"


def _plan(
    images: Sequence[tuple[str, Path]], name: str, images_per_shard: int, mix: bool
) -> list[PlannedShard]:
    if mix:
        # Ordered by a hash of the name: neighbours in a folder (one class, one scene) go to different shards.
        def rank(item: tuple[int, tuple[str, Path]]) -> tuple[bytes, int]:
            return hashlib.sha256(item[1][0].encode("utf-8", "surrogateescape")).digest(), item[0]

        images = [image for _, image in sorted(enumerate(images), key=rank)]
    entries = [
        Entry(make_key(i, image), image, str(path), i % images_per_shard + 1)
        for i, (image, path) in enumerate(images)
    ]
    return [
        PlannedShard(f"{name}-{i // images_per_shard:06d}.tar", entries[i : i + images_per_shard])
        for i in range(0, len(entries), images_per_shard)
    ]


def _fingerprint(images: Sequence[tuple[str, Path]]) -> str:
    digest = hashlib.sha256()
    for name, path in images:
        digest.update(f"{name}\0{path.stat().st_size}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def pack(
    sources: Sequence[str | os.PathLike[str]],
    dest: str | os.PathLike[str],
    *,
    images_per_shard: int = 1000,
    size: int | None = None,
    min_side: int = 0,
    quality: int = 95,
    background: str = "white",
    mix: bool = True,
    workers: int | None = None,
    engine: str = "local",
    force: bool = False,
    progress: bool = True,
) -> Manifest:
    """Pack images into shards `dest/NAME-000000.tar`... and write `dest/manifest.json`.

    Args:
        sources: folders, text files that list images, or images; see `list_sources`.
        dest: folder to write to; its name is the prefix of the shards' names.
        images_per_shard: images per shard, before images are skipped.
        size: scale images down to this short side, in pixels; never up. None: keep the size.
        min_side: skip images whose short side is below this, in pixels.
        quality: JPEG quality of lossy images that are re-encoded (4:4:4 chroma).
        background: colour behind transparent pixels, a name or #rrggbb.
        mix: order images by a hash of their name, otherwise as listed (folders sorted).
        workers: processes of the engine `local`; None: one per core. The result does not depend on it.
        engine: `local` or `ray` (`glc.jobs.engines`).
        force: replace a set that was packed there with other settings or images.
        progress: show progress on stderr.

    Returns:
        The manifest. If the same set is already complete, nothing is written.

    Raises:
        ListingError: a source does not exist or contains no image.
        PackError, JobError: bad arguments, no readable image, or `dest` contains another set without `force`.
        UnfinishedError: some shards could not be written; the next call resumes.
        OSError: a list cannot be read, or `dest` cannot be written to.
    """
    _check_arguments(images_per_shard, size, min_side, quality, workers)
    try:
        parse_background(background)
    except ValueError as error:
        raise PackError(f"background: {error}") from error
    dest = Path(dest)
    name = dest.resolve().name
    if not name or any(letter in name for letter in "{},*?[]:"):
        raise PackError(
            f"{dest}: the last part of the path names the shards; give one without any of {{}},*?[]:"
        )
    images = list_sources(sources)
    settings = {
        "images_per_shard": images_per_shard,
        "size": size,
        "min_side": min_side,
        "quality": quality,
        "mix": mix,
        "pictures": len(images),
        "source_sha256": _fingerprint(images),
        # Only if it is another: sets that were packed before there was a choice stay complete.
        **({} if background == "white" else {"background": background}),
    }
    folder = Folder(dest, {"command": "pack", **settings}, _STATE)
    complete = _check_packed(folder, name, settings, force)
    if complete is not None:
        return complete
    shards = _plan(images, name, images_per_shard, mix)
    try:
        chosen = Engine(engine, (workers or os.cpu_count() or 1) if engine == "local" else 1)
        return _pack(folder, shards, name, settings, background, chosen, force, progress)
    except (FileNotFoundError, UnfinishedError, JobError):
        # Another command that packs the same set into this folder may have finished and removed the state.
        complete = _check_packed(folder, name, settings, force=False)
        if complete is None:
            raise
        return complete


def _pack(
    folder: Folder,
    shards: Sequence[Any],
    name: str,
    settings: dict[str, Any],
    background: str,
    engine: Engine,
    force: bool,
    progress: bool,
) -> Manifest:
    """Write the shards that are missing, then the manifest; remove the state of the job."""
    dest = Path(str(folder))
    folder.prepare(shards, force, remedy=_REMEDY)
    encoding = Encoding(settings["size"], settings["min_side"], settings["quality"], background)
    run(ShardTask(folder, shards, Packer(encoding), amount="image"), engine, quiet=not progress)
    if folder.load(shards):
        raise JobError(f"{dest}: a shard changed after it was packed; run the command again")
    names = {entry.key: entry.name for shard in shards for entry in shard.entries}
    records = []
    for record in (folder.records[shard.name] for shard in shards):
        skipped = [
            {"name": names[f["key"]], "reason": f["error"].removeprefix(f"{names[f['key']]}: ")}
            for f in record.failures
        ]
        records.append(ShardRecord(record.name, record.done, record.bytes, record.sha256, skipped))
    manifest = Manifest(name, settings, records)
    if manifest.count == 0:
        first = manifest.skipped[0]
        _clear(folder, name)
        count, reason = settings["pictures"], f"{first['name']}: {first['reason']}"
        raise PackError(f"{dest}: none of {count} images could be packed; {reason}")
    write_text(dest / MANIFEST, manifest.to_json(), fsync=True)
    folder.store.fence(folder.state)
    return manifest


def _check_arguments(
    images_per_shard: int, size: int | None, min_side: int, quality: int, workers: int | None
) -> None:
    for label, value, low in (
        ("images_per_shard", images_per_shard, 1),
        ("size", size, 1),
        ("min_side", min_side, 0),
        ("workers", workers, 1),
    ):
        if value is not None and value < low:
            raise PackError(f"{label}={value}: must be at least {low}")
    if not 1 <= quality <= 100:
        raise PackError(f"quality={quality}: must be between 1 and 100")


def _shards_in(dest: Path, name: str) -> list[Path]:
    return sorted(p for p in dest.glob("*.tar") if re.fullmatch(re.escape(name) + r"-\d{6,}\.tar", p.name))


def _clear(folder: Folder, name: str) -> None:
    folder.store.fence(folder.state)
    folder.store.remove(MANIFEST)
    for path in _shards_in(Path(str(folder)), name):
        path.unlink()


def _check_packed(folder: Folder, name: str, settings: dict[str, Any], force: bool) -> Manifest | None:
    """Return the manifest of a folder that contains this set; with `force`, remove another set from it."""
    dest = Path(str(folder))
    if dest.exists() and not dest.is_dir():
        raise PackError(f"{dest}: is a file; choose a folder as the destination")
    problem = None
    if (dest / MANIFEST).is_file():
        manifest = read_manifest(dest)
        damaged = [s.name for s in manifest.shards if not _has_size(dest / s.name, s.bytes)]
        if manifest.settings != settings:
            differ = describe_differences(
                {**manifest.settings, "source_sha256": ""}, {**settings, "source_sha256": ""}
            )
            problem = f"{dest}: contains other shards ({differ or 'the source images changed'}); {_REMEDY}"
        elif damaged:
            problem = f"{dest / damaged[0]}: missing or changed since it was packed; pack again with --force"
        else:
            folder.store.fence(folder.state)  # left by a run that was killed after the manifest
            return manifest
    elif (found := folder.current()[2]) is not None:
        # Unfinished: `folder.prepare` refuses other settings unless `force` is set.
        if force and found != folder.stored:
            _clear(folder, name)
        return None
    elif _shards_in(dest, name):
        problem = f"{dest}: contains shards {name}-*.tar without a manifest; {_REMEDY}"
    if problem is not None and not force:
        raise PackError(problem)
    if problem is not None:
        _clear(folder, name)
    return None


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size
