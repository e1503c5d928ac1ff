"""Compilation, caching and self-test of the C kernels."""

import ctypes
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from glc.codec import native, prebuilt
from glc.codec.entropy import integer_kernels
from glc.codec.native import SWITCH, Native
from glc.codec.runtime import winograd

LIBRARIES = {"winograd": winograd.NATIVE, "integer_kernels": integer_kernels.NATIVE}


@pytest.fixture(params=LIBRARIES)
def fresh(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Native]:
    """Return a library that searches again, in an empty cache folder."""
    library = LIBRARIES[request.param]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    library.forget()
    yield library
    library.forget()


@pytest.fixture
def compiled(fresh: Native) -> Native:
    """Return a library that can be compiled here."""
    if fresh.library() is None:
        pytest.skip("no C compiler, a processor without AVX2, or kernels disabled")
    fresh.forget()
    for path in cached(fresh):
        path.unlink()
    return fresh


def cached(library: Native) -> list[Path]:
    return list(native.cache_folder().glob(f"{library.source.stem}-*"))


@pytest.mark.parametrize(
    ("variable", "value"),
    [*(("CC", compiler) for compiler in ("false", "no-such-compiler-here", "true", 'cc "')), (SWITCH, "0")],
)
def test_without_a_working_compiler_or_disabled_there_is_no_library(
    variable: str, value: str, fresh: Native, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    assert fresh.library() is None


def test_compiler_runs_once_with_the_arguments_in_cc(fresh: Native, monkeypatch: pytest.MonkeyPatch) -> None:
    """`CC` may hold arguments, as in make."""
    commands: list[list[str]] = []

    def run(command: list[str], **_: object) -> None:
        commands.append(command)
        raise OSError

    monkeypatch.setattr(native.subprocess, "run", run)
    monkeypatch.setenv("XDG_CACHE_HOME", os.devnull)
    monkeypatch.setenv("CC", "ccache cc -m64")
    assert fresh.library() is None
    assert fresh.library() is None
    assert len(commands) == 1
    assert commands[0][:3] == ["ccache", "cc", "-m64"]


@pytest.mark.parametrize("corrupt", [False, True])
def test_compiled_library_is_cached_and_recompiled_if_the_cache_is_corrupt(
    corrupt: bool, compiled: Native
) -> None:
    assert compiled.library() is not None
    (path,) = cached(compiled)
    modified = path.stat().st_mtime_ns
    if corrupt:
        path.unlink()  # a new file: the loaded one stays mapped
        path.write_bytes(b"no library")
    compiled.forget()
    assert compiled.library() is not None
    assert cached(compiled) == [path]
    assert path.stat().st_size > 1000
    assert (path.stat().st_mtime_ns == modified) is not corrupt


LOAD = "from glc.codec.entropy.integer_kernels import NATIVE as n; raise SystemExit(0 if n.library() else 9)"


def test_damaged_cached_library_is_compiled_again_and_never_loaded(tmp_path: Path) -> None:
    """In processes of their own: loading such a file is a bus error, which no handler survives."""
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}

    def load() -> int:
        return subprocess.run([sys.executable, "-c", LOAD], env=environment, timeout=120).returncode

    if load() == 9:
        pytest.skip("no C compiler, or kernels disabled")
    (path,) = (tmp_path / "glc").iterdir()
    data = path.read_bytes()
    half = len(data) // 2
    for damaged in (data[:4096], data[:half] + bytes(len(data) - half)):  # a short copy, a power loss
        path.write_bytes(damaged)
        assert load() == 0
        assert [file.read_bytes() for file in (tmp_path / "glc").iterdir()] == [data]


def test_library_is_compiled_elsewhere_if_the_cache_is_not_writable(
    compiled: Native, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert compiled.library() is not None


WRONG = {"winograd": "glc_convolve", "integer_kernels": "glc_planes"}


def test_library_that_fails_its_self_test_is_neither_used_nor_cached(
    compiled: Native, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = WRONG[compiled.source.stem]
    declare = compiled._declare

    def skipping(library: ctypes.CDLL) -> None:
        declare(library)
        setattr(library, name, lambda *_: 0)

    monkeypatch.setattr(compiled, "_declare", skipping)
    assert compiled.library() is None
    assert not cached(compiled)


def test_self_test_does_not_change_random_state_or_dtype(compiled: Native) -> None:
    state = torch.random.get_rng_state()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert compiled.library() is not None
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_library_of_the_wheel_is_preferred_to_a_compiler(
    compiled: Native, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert compiled.library() is not None
    (built,) = cached(compiled)
    source = tmp_path / compiled.source.name
    source.write_bytes(compiled.source.read_bytes())
    monkeypatch.setattr(compiled, "source", source)
    monkeypatch.setenv("CC", "no-such-compiler-here")
    compiled.forget()
    assert compiled.library() is None
    for level in prebuilt.LEVELS.get(platform.machine(), {}).values():
        source.with_suffix(f".{level.name}.so").write_bytes(b"no library")
    compiled.forget()
    assert compiled.library() is None  # one that cannot be loaded is not used
    found = list(prebuilt.libraries(source))
    if not found:
        pytest.skip("wheels have no library for this processor")
    found[-1].unlink()
    found[-1].write_bytes(built.read_bytes())
    compiled.forget()
    assert compiled.library() is not None


def test_libraries_are_those_that_the_processor_can_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(sys, "platform", "linux")
    for name in ("v3", "v4", "vnni"):
        (tmp_path / f"a.{name}.so").touch()
    v3 = "avx2 bmi1 bmi2 f16c fma movbe abm"
    v4 = f"{v3} avx512f avx512bw avx512cd avx512dq avx512vl"
    for flags, names in (
        ("sse2", []),
        (v3, ["v3"]),
        (v4, ["v4", "v3"]),
        (f"{v4} avx512_vnni", ["vnni", "v4", "v3"]),
    ):
        monkeypatch.setattr(
            Path, "read_text", lambda _, flags=flags: f"model name : x\nflags : fpu {flags}\n"
        )
        found = [path.name for path in prebuilt.libraries(tmp_path / "a.c")]
        assert found == [f"a.{name}.so" for name in names]
