"""Evaluation: encode every image, decode its file, measure the reconstruction.

```
image --> codec --> file --> codec --> reconstruction --> scores --> journal --+
                                            '--> set metrics ------------------+--> summary, per_image
```

The images of a folder are distributed over the processes; a journal has one line per finished image. Of tar
shards, complete shards are distributed, with Ray over any number of machines.

```
OUT/run.json        everything that determines the results: codec, settings, images, protocol, versions
OUT/journal.jsonl   finished items of a folder's evaluation
OUT/.glc            state of the job (glc.jobs), beside the shards with the measurements of each sample
```
"""

import json
import platform
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tqdm import tqdm

import glc
from glc.data.images import SampleImage, stack_images
from glc.evaluation.codecs.base import Setting
from glc.evaluation.evaluator import (
    Evaluator,
    EvaluatorSpec,
    FolderWorker,
    ImageProcessor,
    Item,
    MakeCodec,
    MakeMetrics,
    choose_devices,
    file_path,
    reconstruction_path,
    rounded,
)
from glc.evaluation.journal import Log
from glc.evaluation.summary import merge_shards, write_results
from glc.evaluation.testsets import ImageFile, ImageSet, ShardSet
from glc.io.atomic import write_text
from glc.io.locks import lock
from glc.jobs.engines import Engine
from glc.jobs.manifest import JobError, as_json, describe_differences
from glc.jobs.run import Task, run
from glc.jobs.tar_shards import refuse_overwriting
from glc.jobs.worker import run_shards
from glc.metrics.quality import QualityMetrics

IDENTITY = "run.json"
JOURNAL = "journal.jsonl"
REMEDY = "give another out=, or overwrite=true"
_PACKAGES = ("torchmetrics", "torchvision", "lpips", "numpy", "pillow")


@dataclass
class FolderTask(Task):
    """The images of a folder at all settings, with one journal."""

    log: Log
    found: dict[Item, dict[str, Any]]
    """Entries of finished items, from the journal and from this run."""

    def outcome(self, item: Item) -> dict[str, Any] | None:
        """Return the entry of a finished item, else None."""
        return self.found.get(item)

    def record(self, item: Item, outcome: dict[str, Any]) -> None:
        """Record an entry. Failures are not written to the journal, so that a later run retries them."""
        if "failed" in outcome:
            tqdm.write(f"{outcome['image']}, {outcome['label']}: {outcome['failed']}", file=sys.stderr)
        else:
            self.log.append(outcome)
        self.found[item] = outcome


@dataclass
class Evaluation:
    """One codec on one set of images, in a folder or in tar shards.

    The same command resumes an interrupted run. Metrics of a complete set are merged over shards.

    Args:
        make_codec: makes the codec on a device, in any process.
        make_metrics: makes the metrics, in any process.
        metrics: names of all requested metrics.
        protocol: their configuration, in JSON's types, for `run.json`.
        device: `auto`, `cpu`, `cuda`, or several of them for several processes.
        threads: threads per process. Results of networks may differ in the last digits with it.
        engine: `local`, or `ray` (`glc.jobs.engines.Engine`), with `ray_cpus`, `ray_gpus` and `ray_memory`.
        part: (i, n) for shards: one of n parts, for a job array.
        overwrite: replace existing results; unfinished shards are resumed.
        progress: False: show no progress.
        keep: for shards: write each image's files and reconstructions into the output shards.
    """

    out: Path
    images: ImageSet | ShardSet
    make_codec: MakeCodec
    make_metrics: MakeMetrics
    metrics: Sequence[str] = ()
    protocol: Mapping[str, Any] = field(default_factory=dict)
    device: str | Sequence[str] = "auto"
    processes: int = 1
    threads: int = 1
    engine: str = "local"
    ray_cpus: float | None = None
    ray_gpus: float | None = None
    ray_memory: int | None = None
    part: tuple[int, int] = (0, 1)
    seed: int = 0
    overwrite: bool = False
    progress: bool | None = None
    keep: bool = False

    def run(self) -> dict[str, Any]:
        """Measure the unfinished images and write `summary.json` and `per_image.csv`.

        Returns:
            The summary.

        Raises:
            JobError: the folder belongs to another evaluation or is in use.
            UnfinishedError: some items are not finished; the same command resumes.
            PartFinished: this part is finished, others are not.
            CodecUnavailable, WeightsError, ValueError, OSError: the codec cannot be used, or writing failed.
        """
        if self.processes < 1 or self.threads < 1:
            counts = f"processes={self.processes} and threads={self.threads}"
            raise ValueError(f"{counts} must be positive integers")
        if isinstance(self.images, ShardSet):
            if (self.out / IDENTITY).exists():
                raise JobError(
                    f"{self.out}: contains the evaluation of a folder of images; give another out="
                )
            refuse_overwriting(self.images.shards, str(self.out), "give another out=")
            return self._run_shards(self.images)
        if self.part != (0, 1):
            raise ValueError("part: only applies to shards; a folder's images are one job")
        return self._run_folder(self.images)

    def _engine(self) -> Engine:
        resources = (self.ray_cpus, self.ray_gpus, self.ray_memory)
        return Engine(self.engine, self.processes, self.threads, *resources, self.part)

    def _evaluator(self) -> tuple[Evaluator, EvaluatorSpec, list[str]]:
        """Return this process's evaluator, the spec for other processes, and the names of the set metrics."""
        devices = choose_devices(self.device, self.processes > 1)
        spec = EvaluatorSpec(self.make_codec, self.make_metrics, (), devices, self.threads, self.seed)
        here = spec(0)
        if self.engine == "ray":  # each process chooses among the GPUs that Ray gives it
            spec = replace(spec, devices=[self.device] if isinstance(self.device, str) else self.device)
        known = {*here.metrics.names, *here.metrics.unavailable}
        in_set = [name for name in self.metrics if name not in known]
        # Workers do not retry unavailable metrics: a failed download takes seconds.
        return here, replace(spec, omitted=(*in_set, *here.metrics.unavailable)), in_set

    def _identity(self, here: Evaluator, data: Mapping[str, Any], measured: Sequence[str]) -> dict[str, Any]:
        """Return everything that determines the results, in JSON's types."""
        codec = here.codec
        packages = {name: found for name in _PACKAGES if (found := _version(name))}
        return {
            "codec": {
                "name": codec.name,
                "kind": codec.kind,
                "fingerprint": codec.fingerprint,
                "versions": dict(codec.versions()),
                "options": dict(codec.options()),
            },
            "settings": [{"label": setting.label, **setting.as_dict()} for setting in codec.settings],
            "data": dict(data),
            "protocol": {
                **self.protocol,
                "measured": list(measured),
                "device": here.device.partition(":")[0],
                "threads": self.threads,
            },
            "seed": self.seed,
            "versions": {
                "glc": glc.__version__,
                "torch": torch.__version__,
                "python": platform.python_version(),
                **packages,
            },
        }

    def _run_shards(self, images: ShardSet) -> dict[str, Any]:
        here, spec, in_set = self._evaluator()
        settings, names, unavailable = here.codec.settings, here.metrics.names, dict(here.metrics.unavailable)
        data = {
            "name": images.name,
            "source": images.source,
            "license": images.license,
            "preparation": {**images.preprocess.as_dict(), "sizes": images.preprocess.sizes},
            **({} if images.member is None else {"member": images.member}),
        }
        for name in here.metrics.not_mergeable:
            unavailable[name] = "not computed over shards: it cannot be merged (full_state_update)"
        in_set = [name for name in in_set if name not in unavailable]
        identity = self._identity(here, data, [*names, *in_set])
        identity = {"command": "eval", **identity, "files": self.keep, "keep": False}
        make_sets = partial(self.make_metrics, [*names, *unavailable]) if in_set else None
        reused = here if self.processes == 1 and self.engine == "local" else None
        del here  # each worker process makes its own
        make_evaluator = spec if reused is None else lambda rank: reused
        folder, totals = run_shards(
            images.shards,
            self.out,
            identity,
            partial(_make_processor, make_evaluator, make_sets, images, self.keep),
            self._engine(),
            force=self.overwrite,
            quiet=self.progress is False,
            remedy=REMEDY,
        )
        sets = None if make_sets is None else make_sets()
        return merge_shards(folder, identity, settings, names, sets, unavailable, totals, images.count)

    def _run_folder(self, images: ImageSet) -> dict[str, Any]:
        here, spec, in_set = self._evaluator()
        codec, metrics = here.codec, here.metrics
        data = {
            "name": images.name,
            "count": len(images.images) if images.limit or images.count is None else images.count,
            "source": images.source,
            "license": images.license,
            "preparation": images.preparation(),
            "sha256": images.hashes(),
        }
        identity = self._identity(here, data, [*metrics.names, *in_set])
        with self._open_log(identity) as log:
            items = [(image, setting) for image in images.images for setting in codec.settings]
            done = {(entry["image"], entry["label"]): entry for entry in log.lines if "image" in entry}
            found = {
                (image, setting): done[image.name, setting.label]
                for image, setting in items
                if (image.name, setting.label) in done
                and self._has_files(done[image.name, setting.label], image, setting, codec.suffix)
            }
            several = self.processes > 1 or self.engine == "ray"
            make_evaluator = spec if several else lambda rank: here
            make_worker = partial(_make_folder_worker, make_evaluator, self.out, images)
            task = FolderTask(str(self.out), items, make_worker, "files", "file", log, found)
            run(task, self._engine(), quiet=self.progress is False)
            entries = {(image.name, setting.label): found[image, setting] for image, setting in items}
            sets = self._measure_sets(images, here, log, entries, in_set)
            return write_results(self.out, identity, codec.settings, images, entries, sets, metrics, in_set)

    @contextmanager
    def _open_log(self, identity: Mapping[str, Any]) -> Iterator[Log]:
        """Lock the output folder and open its journal; check that it has the same settings.

        Raises:
            JobError: the folder is in use, or belongs to another evaluation.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        with lock(self.out / "journal.lock") as held:
            if not held:
                raise JobError(f"{self.out}: another evaluation is writing to it; give another out=")
            path, known, now = self.out / JOURNAL, self.out / IDENTITY, as_json(identity)
            if self.overwrite:
                for name in ("files", "reconstructions") if known.is_file() else ():
                    shutil.rmtree(self.out / name, ignore_errors=True)
                for name in ("summary.json", "per_image.csv", JOURNAL):
                    (self.out / name).unlink(missing_ok=True)
            elif known.is_file():
                try:
                    before = json.loads(known.read_text("utf-8"))
                except ValueError:
                    raise JobError(f"{known}: not valid JSON; {REMEDY}") from None
                if before != now:
                    differ = describe_differences(before, now)
                    raise JobError(f"{self.out}: contains results with other settings ({differ}); {REMEDY}")
            elif path.exists() and path.stat().st_size:
                raise JobError(f"{self.out}: contains {JOURNAL} but no {IDENTITY}; {REMEDY}")
            write_text(known, json.dumps(now, indent=1), fsync=True)
            for left in self.out.glob("*/**/.*.part"):  # left by a run that was killed while writing
                left.unlink(missing_ok=True)
            log = Log(path, fsync=True)
            try:
                yield log
            finally:
                log.close()

    def _has_files(self, entry: Mapping[str, Any], image: ImageFile, setting: Setting, suffix: str) -> bool:
        """Whether the files of a finished entry exist, with the recorded size."""
        path = file_path(self.out, setting, image, suffix)
        same = path.is_file() and path.stat().st_size == entry["bytes"]
        return same and reconstruction_path(self.out, setting, image).is_file()

    def _measure_sets(
        self,
        images: ImageSet,
        here: Evaluator,
        log: Log,
        entries: Mapping[tuple[str, str], Mapping[str, Any]],
        in_set: Sequence[str],
    ) -> dict[str, dict[str, float]]:
        """Return the set metrics, by label.

        This process computes them from the reconstruction files, sorted by name, so that the results do not
        depend on how the images were distributed over processes.
        """
        if not in_set:
            return {}
        found: dict[str, dict[str, float]] = {}
        others = here.metrics
        metrics = self.make_metrics([*others.names, *others.unavailable]).to(here.device)
        title = f"{here.codec.name}, {', '.join(in_set)}"
        for setting in tqdm(here.codec.settings, unit="set", desc=title, disable=None):
            measured = [p for p in images.images if "failed" not in entries[p.name, setting.label]]
            if not measured:
                continue
            names = [image.name for image in measured]
            sizes = [entries[name, setting.label]["bytes"] for name in names]
            key = {"set": setting.label, "images": names, "bytes": sizes}
            known = [entry for entry in log.lines if {**entry, **key} == entry]
            if not known:
                torch.manual_seed(self.seed)
                metrics.reset()
                for image in measured:
                    with Image.open(reconstruction_path(self.out, setting, image), formats=["PNG"]) as file:
                        decoded = file.convert("RGB")
                    pair = (images.read(image), decoded)
                    metrics.update(*(stack_images([image]).to(here.device) for image in pair))
                values = {name: rounded(value) for name, value in metrics.compute().items()}
                log.append({**key, "values": values, "unavailable": metrics.unavailable})
                known = log.lines
            found[setting.label] = known[-1]["values"]
            others.unavailable |= known[-1]["unavailable"]
        return found


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _make_folder_worker(
    make_evaluator: Callable[[int], Evaluator], out: Path, images: ImageSet, local_rank: int
) -> FolderWorker:
    return FolderWorker(out, images, make_evaluator(local_rank))


def _make_processor(
    make_evaluator: Callable[[int], Evaluator],
    make_sets: Callable[[], QualityMetrics] | None,
    images: ShardSet,
    keep: bool,
    local_rank: int,
) -> ImageProcessor:
    evaluator = make_evaluator(local_rank)
    sets = {}
    if make_sets is not None:
        first = make_sets().to(evaluator.device)
        sets = {setting.label: first.empty_copy() for setting in evaluator.codec.settings}
    image = SampleImage(images.member, "testset.member")
    image.said = local_rank > 0  # the first process says it
    return ImageProcessor(evaluator, images.preprocess, keep, image, sets)
