"""How far a collection is, read from the notes that all processes of all machines leave."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Sequence
from typing import NamedTuple

from tqdm import tqdm

from glc.jobs.manifest import Folder
from glc.jobs.tar_shards import Shard

_TAIL = 1 << 16
_IN_LOGS = 60.0
"""Seconds between lines where there is no terminal to draw a bar on."""


class Standing(NamedTuple):
    """What is done: bytes of shards read, and shards finished."""

    bytes: int
    shards: int


class Watch:
    """Looks at the notes from time to time."""

    def __init__(self, folder: Folder, shards: Sequence[Shard]) -> None:
        self.folder = folder
        self.open = {shard.name: (shard, shard.bytes() or 0) for shard in shards}
        self.total = sum(size for _, size in self.open.values())
        self._finished = Standing(0, 0)

    def look(self) -> Standing:
        """Return where the work stands; a shard that is finished is looked at once."""
        present = {entry.name for entry in os.scandir(self.folder.notes)}
        underway = 0
        for name, (shard, size) in list(self.open.items()):
            if f"{name}.json" in present and self.folder.record(shard) is not None:
                del self.open[name]
                self._finished = Standing(self._finished.bytes + size, self._finished.shards + 1)
            elif f"{name}.journal" in present:
                underway += min(size, _read_so_far(self.folder.note(shard, "journal")))
        return Standing(self._finished.bytes + underway, self._finished.shards)


def _read_so_far(path: os.PathLike[str]) -> int:
    """Return how far the shard of a journal is read, from the last line that is whole."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL))
            lines = file.read().splitlines(keepends=True)
    except FileNotFoundError:
        return 0  # finished in this moment
    for line in reversed(lines):
        if line.endswith(b"\n"):
            try:
                return int(json.loads(line).get("read", 0))
            except ValueError:
                return 0
    return 0


class Progress:
    """Shows, while in the context, what is done and how long the rest will take.

    A bar on a terminal; elsewhere a line a minute. The time left follows from the bytes of shards that all
    processes have read since the start.
    """

    def __init__(self, watch: Watch, quiet: bool) -> None:
        self.watch, self.quiet = watch, quiet
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Progress:
        if not self.quiet:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if not self.quiet:
            self._thread.join()

    def _run(self) -> None:
        start = self.watch.look()
        drawn = sys.stderr.isatty()
        bar = tqdm(
            total=self.watch.total,
            initial=start.bytes,
            unit="B",
            unit_scale=True,
            disable=not drawn,
            dynamic_ncols=True,
        )
        began = told = time.monotonic()
        shards = start.shards + len(self.watch.open)
        pause = 1.0
        with bar:
            while not self._over.wait(pause):
                looked = time.monotonic()
                now = self.watch.look()
                # Many shards on a slow file system: no more than a twentieth of the time goes into looking.
                pause = max(1.0, 20 * (time.monotonic() - looked))
                bar.set_postfix_str(f"{now.shards} of {shards} shards", refresh=False)
                bar.update(now.bytes - bar.n)
                if not drawn and looked - told >= _IN_LOGS:
                    told = looked
                    line = tqdm.format_meter(
                        now.bytes,
                        self.watch.total,
                        looked - began,
                        ncols=0,
                        unit="B",
                        unit_scale=True,
                        initial=start.bytes,
                        postfix=f"{now.shards} of {shards} shards",
                    )
                    print(line, file=sys.stderr, flush=True)
