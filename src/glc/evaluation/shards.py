"""An evaluation of pictures in shards, by any number of processes and machines, each sample once.

```
val-0.tar --.                                              .-- OUT/val-0.tar  KEY.json: figures [and files]
val-1.tar --+-- glc.jobs: claims, journals, records -----+-- OUT/val-1.tar
   ...    --'   and one Meter in each process              '-- OUT/.glc
                    all finished: merge --> summary.json, per_image.csv, per_shard.csv
```
"""

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glc.data.images import is_image_name, list_images, read_rgb
from glc.evaluation.codecs.base import ImageCodec
from glc.evaluation.identity import check_counts, choose_devices, describe
from glc.evaluation.measure import (
    MakeCodec,
    MakeMetrics,
    Meter,
    png_bytes,
    prepare_process,
    reason_of,
)
from glc.evaluation.merging import FIGURES, merge
from glc.evaluation.records import IDENTITY, RecordsError
from glc.evaluation.testsets import Form, SetError
from glc.jobs.manifest import Folder
from glc.jobs.run import place_here, run, world
from glc.jobs.tar_shards import Shard, find_shards
from glc.jobs.worker import Coded, Task

REMEDY = "give another out=, or overwrite=true"
NOT_OVER_SHARDS = "not computed over shards: it needs all pictures of the set in one place"


def are_shards(path: Any) -> bool:
    """Whether `testset.path` names shards: a list, what ends in .tar, or a folder of such without images."""
    if not isinstance(path, str | os.PathLike):
        return path is not None
    folder = Path(path).expanduser()
    if folder.suffix.lower() == ".tar":
        return True
    return folder.is_dir() and any(folder.glob("*.tar")) and not list_images(folder)


class ShardSet:
    """The pictures in shards: of each sample the first one. Arguments are those of `PictureSet`.

    Args:
        path: shards: files, folders, `*`, braces as in `val-{0000..0099}.tar`, or a list of these.
        name: of the set.
        count: number of pictures that the set has; None takes what is there.
        source: where to get the set.
        license: its terms.
        pattern: not known of shards, so that it is refused.
        first: likewise.
        sizes: see `Form`.
        resize: see `Form`.
        center_crop: see `Form`.
        limit: a sample cannot be drawn from shards, so that it is refused.
        seed: of that draw.

    Raises:
        SetError: shards cannot be taken so.
        ValueError: there are none, or two have one name.
    """

    def __init__(
        self,
        path: str | Sequence[str],
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
        if limit is not None or pattern is not None:
            key = "limit" if limit is not None else "pattern"
            raise SetError(
                f"testset.{key} goes with a folder of pictures: for shards give testset=shards, "
                f"with testset.resize and so on where the set needs them, or testset.{key}=null"
            )
        self.name = "shards" if name == "folder" else name
        self.count, self.source, self.license = count, source, license
        self.form = Form(self.name, sizes, resize, center_crop)
        self.shards: Sequence[Shard] = find_shards([path] if isinstance(path, str) else list(path))
        if not any(shard.path.exists() for shard in self.shards):
            raise SetError(
                f"testset.path: {self.shards[0].path}: no such file; none of {len(self.shards)} shards exist"
            )


@dataclass
class Measurer:
    """Measures one picture at all settings; what `glc.jobs` calls a coder."""

    meter: Meter
    form: Form
    keep: bool

    def accepts(self, name: str) -> bool:
        """Whether it is a picture."""
        return is_image_name(name)

    def code(self, data: bytes, name: str) -> Coded:
        """Return the figures of a picture, and with `keep` its files and what was decoded from them.

        One that fails at one setting has failed, so that all means are over the same pictures.
        """
        original = self.form.apply(read_rgb(data, name), name)
        figures: dict[str, Any] = {}
        kept: list[tuple[str, bytes]] = []
        for setting in self.meter.codec.settings:
            try:
                coded, encoded = self.meter.encode(original, setting)
                decoded, measured = self.meter.decode(coded, original, name)
            except Exception as error:  # decoders of all kinds raise nearly anything
                if "CUDA error" in str(error):
                    raise
                raise ValueError(f"{setting.label}: {reason_of(error)}") from error
            # Times of many processes on one machine say little, and no two runs have the same.
            entry = {key: value for key, value in {**measured, **encoded}.items() if "seconds" not in key}
            figures[setting.label] = entry
            if self.keep:
                kept += [
                    (f"{setting.label}{self.meter.codec.suffix}", coded),
                    (f"{setting.label}.png", png_bytes(decoded)),
                ]
        text = json.dumps(figures).encode() + b"\n"
        pixels = sum(entry["width"] * entry["height"] for entry in figures.values())
        coded_bytes = sum(entry["bytes"] for entry in figures.values())
        return Coded([(FIGURES, text), *kept], pixels, coded_bytes)


@dataclass(frozen=True)
class MakeMeasurer:
    """Makes the measurer of a process; travels to it."""

    make_codec: MakeCodec
    make_metrics: MakeMetrics
    left_out: Sequence[str]
    devices: Sequence[str]
    form: Form
    keep: bool
    processes: int
    threads: int
    seed: int

    def __call__(self, here: int) -> Measurer:
        """Make codec and metrics on the next device."""
        device = self.devices[place_here(here, self.processes) % len(self.devices)]
        prepare_process(self.threads, self.seed)
        metrics = self.make_metrics(self.left_out).to(device)
        return Measurer(Meter(self.make_codec(device), metrics, device), self.form, self.keep)


@dataclass
class ShardEvaluation:
    """One codec on the pictures of shards; what the arguments mean is said at `Evaluation`.

    Every process of every machine is given the same command. What was finished stays, and the same command
    goes on. Metrics of a whole set are not computed: they need all pictures in one place.

    Args:
        out: the run's folder.
        pictures: the set.
        make_codec: makes the codec on a device, in any process.
        make_metrics: makes the metrics but some, in any process.
        metrics: names of all metrics asked for.
        protocol: how they are configured, for the record.
        device: as in `Evaluation`.
        processes: of this command.
        threads: of each process.
        seed: of all that is drawn.
        overwrite: start anew although the folder has results; what is not finished is gone on with, where its
            settings are the same.
        progress: show it; None: as `glc.jobs` does.
        keep: keep each picture's files and what was decoded from them, in the shards that are written.
    """

    out: Path
    pictures: ShardSet
    make_codec: MakeCodec
    make_metrics: MakeMetrics
    metrics: Sequence[str] = ()
    protocol: Mapping[str, Any] = field(default_factory=dict)
    device: str | Sequence[str] = "auto"
    processes: int = 1
    threads: int = 1
    seed: int = 0
    overwrite: bool = False
    progress: bool | None = None
    keep: bool = False

    def run(self) -> dict[str, Any]:
        """Measure what is left to measure, and merge the figures of all shards.

        Returns:
            The summary.

        Raises:
            CorpusError, RecordsError: the folder belongs to another evaluation.
            UnfinishedError: some shards are not done; the same command goes on.
            CodecUnavailable, WeightsError, ValueError, OSError: nothing could be started, or written.
        """
        began = time.time()
        check_counts(self.processes, self.threads)
        if (self.out / IDENTITY).exists():
            raise RecordsError(f"{self.out}: holds the evaluation of a folder of pictures: give another out=")
        for shard in self.pictures.shards:
            if os.path.realpath(shard.path) == os.path.realpath(self.out / shard.name):
                raise ValueError(f"{shard.path} would be written over: give another out=")
        devices = choose_devices(self.device, self.processes > 1 or world()[1] > 1)
        make = MakeMeasurer(
            self.make_codec,
            self.make_metrics,
            (),
            devices,
            self.pictures.form,
            self.keep,
            self.processes,
            self.threads,
            self.seed,
        )
        first = make(0)
        codec, metrics = first.meter.codec, first.meter.metrics
        settings, names = codec.settings, metrics.names
        known = {*names, *metrics.unavailable}
        in_set = [name for name in self.metrics if name not in known]
        # What cannot be had is looked for once only: it takes seconds when there is no network.
        left_out = [*in_set, *metrics.unavailable]
        unavailable = {**metrics.unavailable, **dict.fromkeys(in_set, NOT_OVER_SHARDS)}
        identity = self._identity(codec, names, devices[0])
        task = Task(self.pictures.shards, self.out, keep=False)
        del codec, metrics
        if self.processes > 1:
            del first  # each process makes its own
        totals = run(
            task,
            identity,
            (lambda here: first) if self.processes == 1 else _without(make, left_out),
            processes=self.processes,
            threads=self.threads,
            force=self.overwrite,
            quiet=self.progress is False,
            remedy=REMEDY,
            began=began,
        )
        count = self.pictures.count
        return merge(
            Folder(self.out), self.pictures.shards, identity, settings, names, unavailable, totals, count
        )

    def _identity(self, codec: ImageCodec, names: Sequence[str], device: str) -> dict[str, Any]:
        data = {
            "name": self.pictures.name,
            "source": self.pictures.source,
            "license": self.pictures.license,
            "preparation": {**self.pictures.form.as_dict(), "sizes": self.pictures.form.sizes},
        }
        described = describe(codec, data, self.protocol, names, device, self.threads, self.seed)
        return {"command": "eval", **described, "files": self.keep}


def _without(make: MakeMeasurer, left_out: Sequence[str]) -> MakeMeasurer:
    return MakeMeasurer(**{**vars(make), "left_out": tuple(left_out)})
