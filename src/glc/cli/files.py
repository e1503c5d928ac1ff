"""Which files a command reads and writes, settled before any work is done.

Reading inputs and writing outputs, so that no half of a file is ever seen.
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
from glc.errors import DamagedError
from glc.io.atomic import write_bytes

STREAM = "-"
"""Stands for standard input or standard output."""


@dataclass(frozen=True)
class Kind:
    """What a command reads and what it makes of it."""

    noun: str
    """What folders are searched for, in the plural."""
    accepts: Callable[[str], bool]
    """Whether a file's name is of this kind; it decides in folders only."""
    suffix: str
    """Of the files that are written."""

    def output_name(self, name: str) -> str:
        """Return the name of what is made of a file; a suffix that is not of this kind stays in it."""
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
        """What to call the source in messages."""
        return "standard input" if self.source is None else click.format_filename(self.source)

    @property
    def target(self) -> str:
        """What to call the destination in messages."""
        return "standard output" if self.destination is None else click.format_filename(self.destination)


@dataclass
class Plan:
    """All jobs of a command."""

    single: bool
    """Whether there is one input and it is no folder."""
    jobs: list[Job] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    """What is wrong with inputs that became no job, a line each."""


def make_plan(inputs: Sequence[str], output: str | None, kind: Kind, force: bool) -> Plan:
    """Find the files that inputs stand for and where their results go.

    A single file goes to `output`, or into it where it is a folder. Of a folder the structure is kept under
    `output`; of several inputs folders are kept under their own names as well. Without `output` results
    go next to their sources.

    Args:
        inputs: files, folders or `-`.
        output: a file, a folder or `-`.
        kind: what is read and written.
        force: existing files may be replaced.

    Raises:
        click.UsageError: when inputs and output do not go together.
    """
    single = len(inputs) == 1 and (inputs[0] == STREAM or not os.path.isdir(inputs[0]))
    plan = Plan(single)
    if single:
        found = [_single_job(inputs[0], output, kind)]
    else:
        if STREAM in inputs:
            raise click.UsageError("'-' must be the only input")
        if output == STREAM:
            raise click.UsageError("only a single file can be written to standard output")
        if output is not None and os.path.lexists(output) and not os.path.isdir(output):
            raise click.UsageError(f"{output!r} is a file: give a folder for several results")
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
        raise click.UsageError(f"{output!r} is a folder: give the name of the file to write")
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
            problems.append(f"{click.format_filename(given)}: no {kind.noun} in this folder")


def _files_in(folder: Path, kind: Kind, problems: list[str]) -> list[Path]:
    """Return the files of a kind under a folder, sorted, but hidden ones; links are followed once."""

    def note(error: OSError) -> None:
        problems.append(f"{click.format_filename(error.filename)}: {error.strerror}")

    found: list[Path] = []
    visited: set[tuple[int, int]] = set()
    for current, folders, files in os.walk(folder, onerror=note, followlinks=True):
        folders.sort()
        status = os.stat(current)
        if (status.st_dev, status.st_ino) in visited:  # a link to somewhere above, or a second one
            folders.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(current, name) for name in files if not name.startswith(".") and kind.accepts(name)]
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def _check(found: Sequence[Job], plan: Plan, force: bool) -> None:
    """Move jobs that can be done into the plan, and say of the others why not."""
    sources = {os.path.realpath(job.source) for job in found if job.source is not None}
    taken: dict[str, Job] = {}
    for job in found:
        problem = None
        if job.source is not None and not os.path.exists(job.source):
            problem = "no such file"
        elif job.destination is not None:
            place = os.path.realpath(job.destination)
            if place in taken:
                problem = f"{job.target} is already what {taken[place].name} becomes"
            elif place in sources:
                problem = f"{job.target} is itself to be read: choose another name with -o"
            else:
                problem = destination_problem(job.destination, force)
            taken.setdefault(place, job)
        if problem is None:
            plan.jobs.append(job)
        else:
            plan.problems.append(f"{job.name}: {problem}")


def destination_problem(path: Path, force: bool) -> str | None:
    """Return why a file cannot be written, as far as can be told beforehand, or None."""
    name = click.format_filename(path)
    if os.path.isdir(path):
        return f"{name} is a folder"
    if os.path.exists(path):
        if not os.path.isfile(path):
            return f"{name} is no ordinary file"
        if not force:
            return f"{name} exists: replace it with --force"
    # Folders are made when there is something to put into them; what counts is the one that exists.
    folder = os.path.dirname(os.path.realpath(path))
    while not os.path.lexists(folder) and os.path.dirname(folder) != folder:
        folder = os.path.dirname(folder)
    if not os.path.isdir(folder):
        return f"{name} cannot be written: {click.format_filename(folder)} is no folder"
    if not os.access(folder, os.W_OK | os.X_OK):
        return f"{name} cannot be written: no permission to write in {click.format_filename(folder)}"
    return None


_CHUNK = 1 << 20


def read_glc(source: Path | None, max_pixels: int = DEFAULT_LIMIT) -> bytes:
    """Return the bytes of a `.glc` file, or those on standard input for None.

    Raises:
        BitstreamError: when it begins like none, or goes on for longer than a file of its picture, or of any
            accepted one, can; the rest is not read then.
        OSError: when it cannot be read.
    """
    with open(source, "rb") if source is not None else nullcontext(sys.stdin.buffer) as file:
        start = file.read(HEADER)
        limit = longest_file(start, max_pixels)
        data = _read(file, limit + 1, start)
    if len(data) > limit:
        check_size(start, max_pixels)
        raise DamagedError(f"damaged: longer than any file of a picture of its size ({limit:,} bytes)")
    return data


def read_picture(stream: IO[bytes]) -> bytes:
    """Return the bytes of a picture on a stream.

    Raises:
        ImageError: there are more than a picture of the largest size has.
    """
    from glc.data.images import MAX_PIXELS
    from glc.errors import ImageError

    limit = MAX_PIXELS * 8 + (1 << 20)  # four channels of 16 bits, not compressed, and a header
    data = _read(stream, limit + 1)
    if len(data) > limit:
        raise ImageError(f"standard input: more than {limit:,} bytes, which no picture needs")
    return data


def _read(stream: IO[bytes], limit: int, start: bytes = b"") -> bytes:
    """Read on to the end or to so many bytes; one `read` would allocate the limit, whatever there is."""
    data = io.BytesIO()
    data.write(start)
    while chunk := stream.read(min(_CHUNK, limit - data.tell())):
        data.write(chunk)
    return data.getvalue()


def write_result(job: Job, data: bytes, force: bool) -> None:
    """Write a job's result, whole or not at all.

    Raises:
        FileExistsError: when a file has appeared there in the meantime, unless `force` is given.
        OSError: when it cannot be written.
    """
    if job.destination is None:
        _write_to_stdout(data)
    else:
        write_bytes(job.destination, data, overwrite=force)


def _write_to_stdout(data: bytes) -> None:
    stream = sys.stdout.buffer
    # Beneath the buffer: what could not be written would be tried again, and complained of, at the exit.
    raw = getattr(stream, "raw", stream)
    rest = memoryview(data)
    try:
        while rest:
            rest = rest[raw.write(rest) or 0 :]
        stream.flush()
    except BrokenPipeError:
        raise  # the reader has seen enough
    except OSError as error:
        raise OSError(error.errno, error.strerror, "standard output") from error
