"""Input and output files of a command, planned before any work starts.

`find_jobs` turns inputs and `-o` into jobs of one source and one destination each, and reports all problems
at once; `outcomes` runs them. `-` is standard input or output.
"""

from __future__ import annotations

import io
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TextIO, TypeVar

import click

from glc.cli.notes import MESSAGES, say
from glc.codec.bitstream import DEFAULT_LIMIT, HEADER, check_size, longest_file
from glc.errors import CorruptFileError
from glc.io.atomic import write_bytes

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

Read = TypeVar("Read")
Coded = TypeVar("Coded")

STREAM = "-"
"""Stands for standard input or standard output."""
SIDECAR_SUFFIX = ".meta"


@dataclass(frozen=True)
class Kind:
    """The kind of file that a command reads, and the suffix of its output."""

    noun: str
    """Name of the kind for messages, in the plural."""
    accepts: Callable[[str], bool]
    """Whether a file name is of this kind; only used for files found in folders."""
    suffix: str
    """Suffix of the files that are written."""
    images: bool = False
    """Whether it is images: images that are left out are then named."""

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


def is_single(inputs: Sequence[str]) -> bool:
    """Whether the only input is a file or standard input."""
    return len(inputs) == 1 and (inputs[0] == STREAM or not os.path.isdir(inputs[0]))


def find_jobs(
    inputs: Sequence[str], output: str | None, kind: Kind, force: bool
) -> tuple[list[Job], list[str]]:
    """Find the input files and choose their output paths.

    The result of a single file is `output`, or a file in `output` if that is a folder. The tree of an input
    folder is reproduced under `output`; with several inputs, under `output` and the folder's name. Without
    `output`, results are written next to their sources.

    Args:
        inputs: files, folders or `-`.
        output: a file, a folder or `-`.
        force: whether existing files may be replaced.

    Returns:
        The jobs, and a line for each input that cannot be processed.

    Raises:
        click.UsageError: inputs and output cannot be combined.
    """
    problems: list[str] = []
    if is_single(inputs):
        found = [_single_job(inputs[0], output, kind)]
    else:
        if STREAM in inputs:
            raise click.UsageError("-: standard input must be the only input")
        if output == STREAM:
            raise click.UsageError("-o -: only a single result can be written to standard output")
        if output is not None and os.path.lexists(output) and not os.path.isdir(output):
            raise click.UsageError(f"{output}: is a file; give a folder for several results")
        found = list(_jobs_in(inputs, output, kind, problems))
    return _possible(found, force, problems), problems


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
    from glc.data.images import LeftOut, list_files

    def note(error: OSError) -> None:
        problems.append(f"{click.format_filename(error.filename)}: {error.strerror}")

    for given in map(Path, inputs):
        if not given.is_dir():
            folder = given.parent if output is None else Path(output)
            yield Job(given, folder / kind.output_name(given.name))
            continue
        root = given if output is None else Path(output)
        if output is not None and len(inputs) > 1:
            root /= given.resolve().name
        left_out = LeftOut() if kind.images else None
        files = list_files(given, kind.accepts, note, left_out)
        others = "" if left_out is None else str(left_out)
        for path in files:
            yield Job(path, root / path.relative_to(given).with_name(kind.output_name(path.name)))
        if not files:
            more = f"; {others}" if others else ""
            problems.append(f"{click.format_filename(given)}: folder contains no {kind.noun}{more}")
        elif others:
            click.echo(f"{click.format_filename(given)}: note: {others}", err=True)


def _possible(found: Sequence[Job], force: bool, problems: list[str]) -> list[Job]:
    """Return the jobs that can be done, and add a problem for each of the others."""
    sources = {os.path.realpath(job.source) for job in found if job.source is not None}
    taken: dict[str, Job] = {}
    possible = []
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
                problem = _destination_problem(job.destination, force)
            taken.setdefault(path, job)
        if problem is None:
            possible.append(job)
        else:
            problems.append(f"{job.name}: {problem}")
    return possible


def _destination_problem(path: Path, force: bool) -> str | None:
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


FAILURES = (ValueError, OSError, RuntimeError, MemoryError)
"""Errors that end one job; others end the command."""
MAX_THREADS = 8
"""With more, the GPU is the bottleneck: one thread writes at least ten PNGs of 0.5 megapixels per second."""
SMALL_PIXELS = 2**20
"""Up to this size images are processed side by side; a larger one gets all cores, and memory, for itself."""
MEMORY_PER_IMAGE = 2e9
"""Bytes for each of the images side by side: any of our models needs less for `SMALL_PIXELS`."""


def threads_for(device: str) -> int:
    """Return the number of I/O threads for a device type: 0 on a CPU, which is already saturated."""
    return 0 if device == "cpu" else min(MAX_THREADS, os.cpu_count() or 1)


def cores_for(device: str, limited: bool) -> int:
    """Return the number of images to process side by side; 1 on a GPU, or within a memory limit."""
    if device != "cpu" or limited:
        return 1
    import torch

    from glc.codec.runtime.resources import available_memory

    memory = available_memory()
    fitting = MAX_THREADS if memory is None else int(memory / MEMORY_PER_IMAGE)
    return max(1, min(torch.get_num_threads(), MAX_THREADS, fitting))


class Cores:
    """The cores of the processor: an image takes one of them, a large image all.

    Args:
        count: their number.
    """

    def __init__(self, count: int) -> None:
        self.count = self._free = count
        self._changed = threading.Condition()

    @contextmanager
    def take(self, pixels: int) -> Iterator[None]:
        """Wait for the cores of an image; PyTorch uses as many threads in this thread."""
        import torch

        need = 1 if pixels <= SMALL_PIXELS else self.count
        with self._changed:
            self._changed.wait_for(lambda: self._free >= need)
            self._free -= need
        try:
            torch.get_num_threads()  # initialises this thread's number, which would replace the following one
            torch.set_num_threads(need)
            yield
        finally:
            with self._changed:
                self._free += need
                self._changed.notify_all()


def outcomes(
    jobs: Sequence[Job],
    read: Callable[[Job], Read],
    code: Callable[[Job, Read], tuple[Coded, str]],
    write: Callable[[Job, Coded], None],
    threads: int,
    cores: int = 1,
    pixels: Callable[[Read], int] = lambda found: 0,
) -> Iterator[tuple[Job, str | Exception]]:
    """Run jobs; yield each in order, with its summary or its error.

    ```
    read   a b c d ...
    code     a b c ...      one at a time; at most `threads` files wait on either side
    write      a b ...
    ```

    Args:
        read: returns what `code` takes.
        code: returns the data to write and a summary line. With one core it runs in the calling thread, in
            order.
        threads: number of reading threads, and of writing threads; 0 processes files one after another.
        cores: with 0 `threads`, the number of files to process side by side, each in a thread of its own.
        pixels: returns the pixels of what `read` returned; large images are processed alone.
    """

    def run(job: Job, place: Callable[[Read], AbstractContextManager[None]]) -> str | Exception:
        try:
            found = read(job)
            with place(found):
                made, summary = code(job, found)
            write(job, made)
        except BrokenPipeError:
            raise  # the reader of standard output has closed it
        except FAILURES as error:
            return error
        return summary

    if len(jobs) < 2 or (not threads and cores < 2):
        for job in jobs:
            yield job, run(job, lambda found: nullcontext())
        return
    if not threads:
        yield from _side_by_side(jobs, run, Cores(cores), pixels)
        return
    from concurrent.futures import Future, ThreadPoolExecutor

    readers, writers = ThreadPoolExecutor(threads), ThreadPoolExecutor(threads)
    waiting: deque[tuple[Job, str, Future[None]]] = deque()
    try:
        for job, reading in _ahead(readers, read, jobs, threads):
            try:
                made, summary = code(job, reading.result())
                written = writers.submit(write, job, made)
                del made
            except FAILURES as error:
                summary, written = "", Future()
                written.set_exception(error)
            waiting.append((job, summary, written))
            while waiting and (len(waiting) > threads or waiting[0][2].done()):
                yield _settled(*waiting.popleft())
        while waiting:
            yield _settled(*waiting.popleft())
    finally:
        # Writes in progress are finished, so that no partial file remains.
        readers.shutdown(cancel_futures=True)
        writers.shutdown(cancel_futures=True)


def _side_by_side(
    jobs: Sequence[Job],
    run: Callable[[Job, Callable[[Any], AbstractContextManager[None]]], str | Exception],
    cores: Cores,
    pixels: Callable[[Any], int],
) -> Iterator[tuple[Job, str | Exception]]:
    from concurrent.futures import ThreadPoolExecutor

    def alone(job: Job) -> tuple[str | Exception, list[tuple[str, TextIO]]]:
        lines: list[tuple[str, TextIO]] = []
        MESSAGES.held = lines
        return run(job, lambda found: cores.take(pixels(found))), lines

    pool = ThreadPoolExecutor(cores.count)
    try:
        for job, running in _ahead(pool, alone, jobs, 2 * cores.count):
            outcome, lines = running.result()
            for text, file in lines:
                say(text, file)
            yield job, outcome
    finally:
        pool.shutdown(cancel_futures=True)  # files in work are finished, so that no partial file remains


def _ahead(
    pool: ThreadPoolExecutor, read: Callable[[Job], Read], jobs: Sequence[Job], number: int
) -> Iterator[tuple[Job, Future[Read]]]:
    waiting: deque[tuple[Job, Future[Read]]] = deque()
    for job in jobs:
        waiting.append((job, pool.submit(read, job)))
        if len(waiting) > number:
            yield waiting.popleft()
    while waiting:
        yield waiting.popleft()


def _settled(job: Job, summary: str, written: Future[None]) -> tuple[Job, str | Exception]:
    try:
        written.result()
    except FAILURES as error:
        return job, error
    return job, summary


def sidecar(path: Path) -> Path:
    """Return the path of a .glc file's sidecar, which holds its metadata."""
    return path.with_name(path.name + SIDECAR_SUFFIX)
