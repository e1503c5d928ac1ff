"""`pack`: folders or lists of pictures become WebDataset shards with a manifest.

Layout of a packed folder, NAME being the folder's own name:

    NAME-000000.tar  NAME-000001.tar ...   the shards
    manifest.json                          written last: its presence means the set is complete
    .packing/                              while packing: the settings and one record per finished shard

Every picture's shard and place in it follow from the list of names alone, so a run that was interrupted goes
on where it stopped and ends with the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import re
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict
from multiprocessing import connection
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

from tqdm import tqdm

from glc.data.shard_writer import (
    MANIFEST,
    Encoding,
    Entry,
    Manifest,
    PackError,
    ShardRecord,
    load_json,
    make_key,
    read_manifest,
    write_atomically,
    write_shard,
)
from glc.data.sources import list_sources

_WORK = ".packing"

_Job = tuple[int, Path, list[Entry], Encoding]


def _plan(pictures: Sequence[tuple[str, Path]], images_per_shard: int, mix: bool) -> list[list[Entry]]:
    if mix:
        # By the hash of the name: neighbours in a folder (one class, one scene) land in different shards.
        def rank(item: tuple[int, tuple[str, Path]]) -> tuple[bytes, int]:
            return hashlib.sha256(item[1][0].encode("utf-8", "surrogateescape")).digest(), item[0]

        pictures = [picture for _, picture in sorted(enumerate(pictures), key=rank)]
    entries = [Entry(make_key(i, name), name, str(path)) for i, (name, path) in enumerate(pictures)]
    return [entries[i : i + images_per_shard] for i in range(0, len(entries), images_per_shard)]


def _fingerprint(pictures: Sequence[tuple[str, Path]]) -> str:
    digest = hashlib.sha256()
    for name, path in pictures:
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
    mix: bool = True,
    workers: int | None = None,
    force: bool = False,
    progress: bool = True,
) -> Manifest:
    """Pack pictures into shards `dest/NAME-000000.tar`... and write `dest/manifest.json`.

    Args:
        sources: folders, text files that list pictures, or pictures; see `list_sources`.
        dest: folder to write; its last part names the shards.
        images_per_shard: pictures per shard, before pictures are skipped.
        size: scale pictures down so that their short side has this many pixels; never up. None leaves them.
        min_side: skip pictures whose short side is below this.
        quality: JPEG quality of lossy pictures that had to be changed (stored with full-resolution colour).
        mix: order pictures by a hash of their name, else as listed (folders sorted).
        workers: processes; None takes one per core. The result does not depend on it.
        force: replace what was packed there with other settings or other pictures.
        progress: show a progress bar on stderr.

    Returns:
        The manifest. If this very set is complete already, nothing is written.

    Raises:
        ListingError: a source does not exist or holds no picture.
        PackError: bad arguments, no readable picture, or `dest` holds another set and `force` is off.
        OSError: reading a list or writing failed. Finished shards stay, and the next call goes on after them.
    """
    _check_arguments(images_per_shard, size, min_side, quality, workers)
    dest = Path(dest)
    name = dest.resolve().name
    if not name or any(letter in name for letter in "{},*?[]:"):
        raise PackError(f"{dest}: its last part names the shards, so it needs one without any of {{}},*?[]:")
    pictures = list_sources(sources)
    settings = {
        "images_per_shard": images_per_shard,
        "size": size,
        "min_side": min_side,
        "quality": quality,
        "mix": mix,
        "pictures": len(pictures),
        "source_sha256": _fingerprint(pictures),
    }
    plan = _plan(pictures, images_per_shard, mix)
    done = _prepare(dest, name, settings, force)
    if done is not None:
        return done
    encoding = Encoding(size, min_side, quality)
    finished = _finished_shards(dest, name, len(plan))
    todo = [index for index in range(len(plan)) if index not in finished]
    bar = tqdm(
        total=len(pictures), unit="pic", desc=f"packing {name}", disable=not progress, dynamic_ncols=True
    )
    with bar:
        bar.update(sum(len(plan[index]) for index in finished))
        jobs = [(index, _shard_path(dest, name, index), plan[index], encoding) for index in todo]
        _run(jobs, min(workers or os.cpu_count() or 1, len(jobs)), bar)
    manifest = Manifest(name, settings, [_read_record(dest, index) for index in range(len(plan))])
    if manifest.count == 0:
        first = manifest.skipped[0]
        _clear(dest, name)
        raise PackError(
            f"none of {len(pictures)} pictures could be packed; {first['name']}: {first['reason']}"
        )
    write_atomically(dest / MANIFEST, manifest.to_json())
    shutil.rmtree(dest / _WORK)
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


def _shard_path(dest: Path, name: str, index: int) -> Path:
    return dest / f"{name}-{index:06d}.tar"


def _shards_in(dest: Path, name: str) -> list[Path]:
    return sorted(p for p in dest.glob("*.tar") if re.fullmatch(re.escape(name) + r"-\d{6,}\.tar", p.name))


def _clear(dest: Path, name: str) -> None:
    (dest / MANIFEST).unlink(missing_ok=True)
    for path in _shards_in(dest, name):
        path.unlink()
    shutil.rmtree(dest / _WORK, ignore_errors=True)


def _prepare(dest: Path, name: str, settings: dict[str, Any], force: bool) -> Manifest | None:
    """Make `dest` ready for this set; returns its manifest when it is complete already."""
    if dest.exists() and not dest.is_dir():
        raise PackError(f"{dest}: is a file; the destination must be a folder")
    work = dest / _WORK
    earlier = _earlier_settings(dest)
    if earlier is not None and earlier != settings and not force:
        raise PackError(
            f"{dest}: holds shards packed differently ({_difference(earlier, settings)}). "
            "Choose another destination, or --force to replace them"
        )
    if earlier is None and _shards_in(dest, name) and not force:
        raise PackError(
            f"{dest}: holds shards {name}-*.tar that no manifest describes. "
            "Choose another destination, or --force to replace them"
        )
    if earlier != settings:
        _clear(dest, name)
    elif (dest / MANIFEST).is_file():
        manifest = read_manifest(dest)
        damaged = [s.name for s in manifest.shards if not _has_size(dest / s.name, s.bytes)]
        if not damaged:
            return manifest
        if not force:
            raise PackError(
                f"{dest / damaged[0]}: missing or damaged since it was packed; --force packs anew"
            )
        _clear(dest, name)
    work.mkdir(parents=True, exist_ok=True)
    for leftover in [*dest.glob(".*.partial"), *work.glob(".*.partial")]:
        leftover.unlink(missing_ok=True)
    write_atomically(work / "settings.json", json.dumps(settings))
    return None


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _earlier_settings(dest: Path) -> dict[str, Any] | None:
    if (dest / MANIFEST).is_file():
        return read_manifest(dest).settings
    started = dest / _WORK / "settings.json"
    return load_json(started) if started.is_file() else None


def _difference(earlier: dict[str, Any], now: dict[str, Any]) -> str:
    changed = [key for key in now if key != "source_sha256" and earlier.get(key) != now[key]]
    if not changed:
        return "the source pictures changed"
    return ", ".join(f"{key} was {earlier.get(key)}, is {now[key]}" for key in changed)


def _record_path(dest: Path, index: int) -> Path:
    return dest / _WORK / f"{index:06d}.json"


def _read_record(dest: Path, index: int) -> ShardRecord:
    return ShardRecord(**load_json(_record_path(dest, index)))


def _finished_shards(dest: Path, name: str, total: int) -> set[int]:
    finished = set()
    for index in range(total):
        if _record_path(dest, index).is_file():
            record = _read_record(dest, index)
            if _has_size(_shard_path(dest, name, index), record.bytes):
                finished.add(index)
    return finished


def _write_one(job: _Job, on_picture: Callable[[], None]) -> None:
    index, path, entries, encoding = job
    record = write_shard(path, entries, encoding, on_picture)
    write_atomically(_record_path(path.parent, index), json.dumps(asdict(record), ensure_ascii=False))


def _advance(bar: tqdm) -> None:
    bar.update(1)


def _run(jobs: Sequence[_Job], workers: int, bar: tqdm) -> None:
    if workers <= 1 or len(jobs) <= 1:
        for job in jobs:
            _write_one(job, lambda: _advance(bar))
        return
    # Fresh interpreters: the caller may hold threads (torch, a trainer) that do not survive a fork.
    context = multiprocessing.get_context("spawn")
    counter, stop = context.Value("q", 0), context.Event()
    pool = ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(counter, stop))
    with _stopping(pool, stop):
        pending: set[Future[None]] = {pool.submit(_work, job) for job in jobs}
        shown = 0
        while pending:
            done, pending = wait(pending, timeout=0.2, return_when=FIRST_EXCEPTION)
            packed = counter.value
            bar.update(packed - shown)
            shown = packed
            for future in done:
                try:
                    future.result()
                except BrokenProcessPool as error:
                    raise OSError(
                        "a worker process died (out of memory?); run again to go on, with fewer --workers"
                    ) from error


@contextmanager
def _stopping(pool: ProcessPoolExecutor, stop: Event) -> Iterator[None]:
    """Let the workers drop what they do when anything goes wrong, instead of packing on to the end."""
    try:
        yield
    except BaseException:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)
        raise
    pool.shutdown()


class _Stopped(Exception):
    pass


_counter: Any = None
_stop: Any = None


def _start_worker(counter: Any, stop: Any) -> None:
    global _counter, _stop
    _counter, _stop = counter, stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides and tells through `stop`
    # A worker whose parent was killed would otherwise wait for work forever.
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_exit_with, args=(parent.sentinel,), daemon=True).start()


def _exit_with(sentinel: int) -> None:
    connection.wait([sentinel])
    os._exit(1)


def _count_picture() -> None:
    if _stop.is_set():
        raise _Stopped
    with _counter.get_lock():
        _counter.value += 1


def _work(job: _Job) -> None:
    _write_one(job, _count_picture)
