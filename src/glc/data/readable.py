"""Find the sources of a run and read an image of each before anything is written.

The rule: a source is refused if it cannot be read, or if no byte of it arrives within `seconds`. A source
that has sent bytes but no complete image by then is slow, not dead: a warning, and the run starts. All are
tried at the same time, so dead ones take `seconds` together. Each rank tries for itself: it costs one image
per source, and ranks may see different files.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping

from glc.data.deadline import Watch, attempt
from glc.data.images import SampleImage
from glc.data.shards import read_shard
from glc.data.sources import Source, Sources, entries_of, resolve
from glc.jobs.storage import is_url

_log = logging.getLogger(__name__)

_TRIED = 3  # shards of a source that are tried; of many, some may be corrupt


def find_readable(
    given: Mapping[str, Source | Iterable[Source] | None], seconds: float, member: str | None = None
) -> dict[str, list[Sources]]:
    """Return the sources of the entries of config values, after an image of each has been read.

    Args:
        given: values by their keys, such as `{"data.train": "shards/*.tar"}`.
        seconds: how long to wait for a first byte; 0: no shard is read.
        member: suffix of the image of each sample of shards; None: the first one.

    Raises:
        ValueError: as `resolve` does, or a source cannot be read; the message starts with the key.
    """
    entries = [(key, item) for key, value in given.items() for item in entries_of(value) or [""]]
    found: list[Sources | None] = [None] * len(entries)

    def trial(index: int, key: str, item: Source) -> Callable[[Watch], None]:
        def run(watch: Watch) -> None:
            found[index] = sources = resolve(item, key, watch)
            if seconds and sources.shards:
                _read_one(sources.shards[:_TRIED], key, member, watch)

        return run

    watches = attempt([trial(i, *entry) for i, entry in enumerate(entries)], seconds or None)
    try:
        for i, ((key, item), watch) in enumerate(zip(entries, watches, strict=True)):
            if watch.alive and found[i] is None:
                watch.done.wait()  # a data set that is being downloaded
            if watch.error is not None:
                raise watch.error
            if watch.done.is_set():
                continue
            if not watch.alive:
                raise ValueError(
                    f"{key}: {item}: no answer within {seconds:g} s; correct it, or wait longer with "
                    f"data.open_timeout={4 * seconds:g}"
                )
            _log.warning("%s: %s: no complete image within %g s, a slow source", key, item, seconds)
    finally:
        for watch in watches:
            watch.stop()
    return {key: [s for (k, _), s in zip(entries, found, strict=True) if k == key and s] for key in given}


def _read_one(shards: Iterable[str], key: str, member: str | None, watch: Watch) -> None:
    image = SampleImage(member)
    image.said = True
    problems = []
    for url in shards:
        try:
            # That no sample has the named file is said later, with the files that there are.
            if next(read_shard(url, image, watch), None) is not None or member is not None:
                return
            problem = "it contains no image (.jpg, .png, .webp, .tif, ...)"
            fix = "correct the name, or pack images with `glc pack SOURCE DEST`"
        except OSError as error:
            problem = error.strerror or str(error)
            fix = "correct the URL or command" if is_url(url) else "pack it again, or correct the path"
            if isinstance(error.__cause__, ImportError):  # the message has the fix
                fix = ""
        problems.append(f"{key}: {url}: {problem}{'; ' if fix else ''}{fix}")
    raise ValueError(problems[0])
