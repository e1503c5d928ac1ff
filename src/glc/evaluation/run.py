"""An evaluation: every picture at every setting, recorded as it goes, summed up at the end."""

import multiprocessing
import shutil
import sys
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from glc.evaluation.codecs.base import ImageCodec, Setting
from glc.evaluation.identity import check_counts, choose_devices, describe
from glc.evaluation.measure import (
    Assignment,
    Bench,
    MakeCodec,
    MakeMetrics,
    Meter,
    file_path,
    measure_set,
    prepare_process,
    reconstruction_path,
    start_worker,
    work,
)
from glc.evaluation.records import IDENTITY, Journal, open_journal
from glc.evaluation.summary import write_results
from glc.evaluation.testsets import Picture, PictureSet
from glc.metrics.quality import QualityMetrics


@dataclass
class Evaluation:
    """One codec on one set of pictures.

    ```
    picture --> codec --> file --> codec --> reconstruction --> scores --> journal --+
                                                  '--> metrics of the whole set -----+--> summary, per_image
    ```

    Args:
        out: the run's folder; a run that was broken off there goes on.
        pictures: the set.
        make_codec: makes the codec on a device, in any process.
        make_metrics: makes the metrics but some, in any process.
        metrics: names of all metrics asked for.
        protocol: how they are configured, in JSON's types, for the record.
        device: `auto`, `cpu`, `cuda`, or several of them for several processes.
        processes: on this machine; each takes the next picture that is left.
        threads: of each process. The results of networks may differ in the last digits with it.
        seed: of all that is drawn.
        overwrite: start anew although the folder has results.
        progress: show a bar; None: on a terminal.
    """

    out: Path
    pictures: PictureSet
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

    def run(self) -> dict[str, Any]:
        """Measure what is left to measure, and write `summary.json` and `per_image.csv`.

        Returns:
            The summary.

        Raises:
            RecordsError: the folder belongs to another evaluation or is in use.
            SetError, CodecUnavailable, WeightsError, ValueError: nothing could be started, or written.
        """
        check_counts(self.processes, self.threads)
        devices = choose_devices(self.device, self.processes > 1)
        prepare_process(self.threads, self.seed)
        codec = self.make_codec(devices[0])
        metrics = self.make_metrics(())
        known = {*metrics.names, *metrics.unavailable}
        in_set = [name for name in self.metrics if name not in known]
        hashes = self.pictures.hashes()
        data = {
            "name": self.pictures.name,
            "count": len(self.pictures.pictures) + self._absent(),
            "source": self.pictures.source,
            "license": self.pictures.license,
            "preparation": self.pictures.preparation(),
            "sha256": dict(hashes),
        }
        measured = [*metrics.names, *in_set]
        identity = describe(codec, data, self.protocol, measured, devices[0], self.threads, self.seed)
        if self.overwrite and (self.out / IDENTITY).is_file():
            for old in ("files", "reconstructions"):
                shutil.rmtree(self.out / old, ignore_errors=True)
        # What cannot be had is looked for once only: it takes seconds when there is no network.
        left_out = [*in_set, *metrics.unavailable]
        assignment = Assignment(
            self.out, self.pictures, self.make_codec, self.make_metrics, left_out, self.threads, self.seed
        )
        with open_journal(self.out, identity, self.overwrite) as journal:
            for left in self.out.glob("*/**/.*.part"):  # of a run that was killed while it wrote
                left.unlink(missing_ok=True)
            meter = Meter(codec, metrics.to(devices[0]), devices[0])
            here = Bench(self.out, self.pictures, meter)
            entries = self._measure_pictures(here, journal, assignment, devices)
            sets = self._measure_sets(codec, journal, entries, metrics, in_set, devices[0])
            unavailable = dict(metrics.unavailable)
            return write_results(
                self.out,
                identity,
                codec.settings,
                self.pictures,
                entries,
                sets,
                metrics.names,
                in_set,
                unavailable,
            )

    def _absent(self) -> int:
        if self.pictures.limit is not None or self.pictures.count is None:
            return 0
        return self.pictures.count - len(self.pictures.pictures)

    def _measure_pictures(
        self, here: Bench, journal: Journal, assignment: Assignment, devices: Sequence[str]
    ) -> dict[tuple[str, str], dict[str, Any]]:
        codec = here.meter.codec
        done = {(entry["picture"], entry["label"]): entry for entry in journal.entries if "picture" in entry}
        found: dict[tuple[str, str], dict[str, Any]] = {}
        tasks = []
        for picture in self.pictures.pictures:
            for setting in codec.settings:
                entry = done.get((picture.name, setting.label))
                if entry is not None and self._is_there(entry, picture, setting, codec.suffix):
                    found[picture.name, setting.label] = entry
                else:
                    tasks.append((picture, setting))
        total = len(tasks) + len(found)
        hidden = None if self.progress is None else not self.progress
        with (
            tqdm(total=total, initial=len(found), unit="file", desc=codec.name, disable=hidden) as bar,
            closing(self._results(tasks, here, assignment, devices)) as results,
        ):
            for entry in results:
                # Failures are not kept: they are tried again, and told again.
                if "failed" not in entry:
                    journal.append(entry)
                else:
                    bar.write(f"{entry['picture']}, {entry['label']}: {entry['failed']}", file=sys.stderr)
                found[entry["picture"], entry["label"]] = entry
                bar.update()
        return found

    def _is_there(self, entry: Mapping[str, Any], picture: Picture, setting: Setting, suffix: str) -> bool:
        """Say whether the files of a finished entry are still what the entry says."""
        path = file_path(self.out, setting, picture, suffix)
        return (
            path.is_file()
            and path.stat().st_size == entry["bytes"]
            and reconstruction_path(self.out, setting, picture).is_file()
        )

    def _results(
        self,
        tasks: Sequence[tuple[Picture, Setting]],
        here: Bench,
        assignment: Assignment,
        devices: Sequence[str],
    ) -> Generator[dict[str, Any], None, None]:
        """Yield entries in the order in which they are done."""
        processes = min(self.processes, len(tasks))
        if processes <= 1:
            yield from (here.measure(*task) for task in tasks)
            return
        # Children forked from here, where threads and perhaps a GPU are in use, could hang. A server that
        # has only imported what they need can be forked, which saves each of them the imports.
        context: Any
        if "forkserver" in multiprocessing.get_all_start_methods():
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload(["__main__", "glc.evaluation.measure", "torchmetrics"])
        else:
            context = multiprocessing.get_context("spawn")
        queue = context.Queue()
        for k in range(processes):
            queue.put(devices[k % len(devices)])
        pool = ProcessPoolExecutor(processes, context, start_worker, (assignment, queue))
        try:
            for future in as_completed([pool.submit(work, task) for task in tasks]):
                yield future.result()
        except BrokenProcessPool as error:
            raise RuntimeError(
                "a worker process ended (out of memory?): start the same command again to go on, "
                "with fewer processes="
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)

    def _measure_sets(
        self,
        codec: ImageCodec,
        journal: Journal,
        entries: Mapping[tuple[str, str], Mapping[str, Any]],
        metrics: QualityMetrics,
        in_set: Sequence[str],
        device: str,
    ) -> dict[str, dict[str, float]]:
        """Return the metrics of the whole set, by label."""
        if not in_set:
            return {}
        found: dict[str, dict[str, float]] = {}
        only = self.make_metrics([*metrics.names, *metrics.unavailable]).to(device)
        for setting in tqdm(
            codec.settings, unit="set", desc=f"{codec.name}, {', '.join(in_set)}", disable=None
        ):
            measured = [
                picture
                for picture in self.pictures.pictures
                if "failed" not in entries[picture.name, setting.label]
            ]
            if not measured:
                continue
            names = [picture.name for picture in measured]
            sizes = [entries[name, setting.label]["bytes"] for name in names]
            known = [
                entry
                for entry in journal.entries
                if entry.get("set") == setting.label and [entry["pictures"], entry["bytes"]] == [names, sizes]
            ]
            if known:
                found[setting.label] = known[-1]["values"]
                metrics.unavailable |= known[-1]["unavailable"]
                continue
            values = measure_set(self.out, self.pictures, measured, setting, only, device, self.seed)
            done = {"set": setting.label, "pictures": names, "bytes": sizes, "values": values}
            journal.append({**done, "unavailable": only.unavailable})
            metrics.unavailable |= only.unavailable
            found[setting.label] = values
        return found
