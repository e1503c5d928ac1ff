"""Input and output files of a command, planned before any work starts.

`make_plan` turns inputs and `-o` into jobs of one source and one destination each, and reports all problems
at once. `-` is standard input or output.
"""

import io
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import click

from glc.codec.bitstream import DEFAULT_LIMIT, HEADER, check_size, longest_file
from glc.errors import CorruptFileError
from glc.io.atomic import write_bytes

STREAM = "-"
"""Stands for standard input or standard output."""


@dataclass(frozen=True)
class Kind:
    """The kind of file that a command reads, and the suffix of its output."""

    noun: str
    """Name of the kind for messages, in the plural."""
    accepts: Callable[[str], bool]
    """Whether a file name is of this kind; only used for files found in folders."""
    suffix: str
    """Suffix of the files that are written."""

    def output_name(self, name: str) -> str:
        """Return the output name for an input name; a suffix of another kind is kept."""
        return (os.path.splitext(name)[0] if self.accepts(name) else name) + self.suffix


@dataclass(frozen=True)
class Job:
    """One file to read and one to write."""

    source: Path | None
    """None for standard input."""
    destination: Path | None
    """None for standard output."""

    @property
    def name(self) -> str:
        """The source's name in messages."""
        return "standard input" if self.source is None else click.format_filename(self.source)

    @property
    def target(self) -> str:
        """The destination's name in messages."""
        return "standard output" if self.destination is None else click.format_filename(self.destination)


@dataclass
class Plan:
    """All jobs of a command."""

    single: bool
    """Whether the only input is a file or standard input."""
    jobs: list[Job] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    """One line for each input that cannot be processed."""


def make_plan(inputs: Sequence[str], output: str | None, kind: Kind, force: bool) -> Plan:
    """Find the input files and choose their output paths.

    The result of a single file is `output`, or a file in `output` if that is a folder. The tree of an input
    folder is reproduced under `output`; with several inputs, under `output` and the folder's name. Without
    `output`, results are written next to their sources.

    Args:
        inputs: files, folders or `-`.
        output: a file, a folder or `-`.
        kind: kind of the input files.
        force: whether existing files may be replaced.

    Raises:
        click.UsageError: inputs and output cannot be combined.
    """
    single = len(inputs) == 1 and (inputs[0] == STREAM or not os.path.isdir(inputs[0]))
    plan = Plan(single)
    if single:
        found = [_single_job(inputs[0], output, kind)]
    else:
        if STREAM in inputs:
            raise click.UsageError("-: standard input must be the only input")
        if output == STREAM:
            raise click.UsageError("-o -: only a single result can be written to standard output")
        if output is not None and os.path.lexists(output) and not os.path.isdir(output):
            raise click.UsageError(f"{output}: is a file; give a folder for several results")
        found = list(_jobs_in(inputs, output, kind, plan.problems))
    _check(found, plan, force)
    return plan


def _single_job(given: str, output: str | None, kind: Kind) -> Job:
    source = None if given == STREAM else Path(given)
    if output == STREAM or (output is None and source is None):
        return Job(source, None)
    if output is None:
        assert source is not None
        return Job(source, source.with_name(kind.output_name(source.name)))
    if not output.endswith(("/", os.sep)) and not os.path.isdir(output):
        return Job(source, Path(output))
    if source is None:
        raise click.UsageError(f"{output}: is a folder; give the name of the file to write")
    return Job(source, Path(output, kind.output_name(source.name)))


def _jobs_in(inputs: Sequence[str], output: str | None, kind: Kind, problems: list[str]) -> Iterator[Job]:
    for given in map(Path, inputs):
        if not given.is_dir():
            folder = given.parent if output is None else Path(output)
            yield Job(given, folder / kind.output_name(given.name))
            continue
        root = given if output is None else Path(output)
        if output is not None and len(inputs) > 1:
            root /= given.resolve().name
        empty = True
        for path in _files_in(given, kind, problems):
            empty = False
            yield Job(path, root / path.relative_to(given).with_name(kind.output_name(path.name)))
        if empty:
            problems.append(f"{click.format_filename(given)}: folder contains no {kind.noun}")


def _files_in(folder: Path, kind: Kind, problems: list[str]) -> list[Path]:
    """Return the files of a kind under a folder, sorted and without hidden ones; follow links once."""

    def note(error: OSError) -> None:
        problems.append(f"{click.format_filename(error.filename)}: {error.strerror}")

    found: list[Path] = []
    visited: set[tuple[int, int]] = set()
    for current, folders, files in os.walk(folder, onerror=note, followlinks=True):
        folders.sort()
        status = os.stat(current)
        if (status.st_dev, status.st_ino) in visited:  # a link to a parent folder, or a second link
            folders.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(current, name) for name in files if not name.startswith(".") and kind.accepts(name)]
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def _check(found: Sequence[Job], plan: Plan, force: bool) -> None:
    """Add the possible jobs to the plan, and a problem for each of the others."""
    sources = {os.path.realpath(job.source) for job in found if job.source is not None}
    taken: dict[str, Job] = {}
    for job in found:
        problem = None
        if job.source is not None and not os.path.exists(job.source):
            problem = "no such file"
        elif job.destination is not None:
            path = os.path.realpath(job.destination)
            if path in taken:
                problem = f"{job.target} is already the output of {taken[path].name}"
            elif path in sources:
                problem = f"{job.target} is also an input; choose another name with -o"
            else:
                problem = destination_problem(job.destination, force)
            taken.setdefault(path, job)
        if problem is None:
            plan.jobs.append(job)
        else:
            plan.problems.append(f"{job.name}: {problem}")


def destination_problem(path: Path, force: bool) -> str | None:
    """Return why a file cannot be written, or None; checks what can be checked without writing."""
    name = click.format_filename(path)
    if os.path.isdir(path):
        return f"{name} is a folder"
    if os.path.exists(path):
        if not os.path.isfile(path):
            return f"{name} is not a regular file"
        if not force:
            return f"{name} exists; replace it with --force"
    # Missing folders are created when the result is written: check the nearest existing one.
    folder = os.path.dirname(os.path.realpath(path))
    while not os.path.lexists(folder) and os.path.dirname(folder) != folder:
        folder = os.path.dirname(folder)
    if not os.path.isdir(folder):
        return f"{name} cannot be written: {click.format_filename(folder)} is not a folder"
    if not os.access(folder, os.W_OK | os.X_OK):
        return f"{name} cannot be written: no permission to write in {click.format_filename(folder)}"
    return None


_CHUNK = 1 << 20


def read_glc(source: Path | None, max_pixels: int = DEFAULT_LIMIT) -> bytes:
    """Return the bytes of a `.glc` file, or those on standard input for None.

    Raises:
        BitstreamError: the data is not a `.glc` file, or is longer than its image size allows; the rest is
            then not read.
        OSError: it cannot be read.
    """
    with open(source, "rb") if source is not None else nullcontext(sys.stdin.buffer) as file:
        start = file.read(HEADER)
        limit = longest_file(start, max_pixels)
        data = _read(file, limit + 1, start)
    if len(data) > limit:
        check_size(start, max_pixels)
        raise CorruptFileError(f"corrupt file: longer than the maximum for its image size ({limit:,} bytes)")
    return data


def read_image(stream: IO[bytes]) -> bytes:
    """Return the bytes of an image on a stream.

    Raises:
        ImageError: the stream is longer than the largest allowed image.
    """
    from glc.data.images import MAX_PIXELS
    from glc.errors import ImageError

    limit = MAX_PIXELS * 8 + (1 << 20)  # four uncompressed channels of 16 bits, and a header
    data = _read(stream, limit + 1)
    if len(data) > limit:
        raise ImageError(f"standard input: longer than the limit of {limit:,} bytes")
    return data


def _read(stream: IO[bytes], limit: int, start: bytes = b"") -> bytes:
    """Read up to `limit` bytes, in chunks: a single `read` would allocate `limit` bytes."""
    data = io.BytesIO()
    data.write(start)
    while chunk := stream.read(min(_CHUNK, limit - data.tell())):
        data.write(chunk)
    return data.getvalue()


def write_result(job: Job, data: bytes, force: bool) -> None:
    """Write a job's result; a file is written atomically.

    Raises:
        FileExistsError: the file was created in the meantime, and `force` is false.
        OSError: it cannot be written.
    """
    if job.destination is None:
        _write_to_stdout(data)
    else:
        write_bytes(job.destination, data, overwrite=force)


def _write_to_stdout(data: bytes) -> None:
    stream = sys.stdout.buffer
    # Bypass the buffer: after a failure Python would flush it again at exit, and fail again.
    raw = getattr(stream, "raw", stream)
    rest = memoryview(data)
    try:
        while rest:
            rest = rest[raw.write(rest) or 0 :]
        stream.flush()
    except BrokenPipeError:
        raise  # the reader has closed the pipe
    except OSError as error:
        raise OSError(error.errno, error.strerror, "standard output") from error
