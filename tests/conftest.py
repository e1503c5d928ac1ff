"""What every test can rely on: a fixed seed, and no more threads than a small machine has."""

import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

# Workers side by side share the cores: a thread for each, and for each program that a test starts.
SHARED = "PYTEST_XDIST_WORKER" in os.environ
if SHARED:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1 if SHARED else min(2, torch.get_num_threads()))


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of tests/stress, which must be known before its conftest is read."""
    parser.addoption("--long", action="store_true", help="tests/stress: the long form of each test")
    parser.addoption(
        "--stress",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="tests/stress: rounds, seed, device, weights, images, lpips, files or output",
    )


@pytest.fixture(autouse=True)
def isolated() -> Iterator[None]:
    """Start each test from the same random numbers, and take back what it does to the whole process.

    Commands that run in process configure logging as Hydra does (loggers disabled, handlers replaced), and
    PyTorch's compiler raises the recursion limit.
    """
    torch.manual_seed(0)
    limit, root = sys.getrecursionlimit(), logging.getLogger()
    loggers = [
        root,
        *(x for x in logging.Logger.manager.loggerDict.values() if isinstance(x, logging.Logger)),
    ]
    before = [
        (logger, logger.level, logger.disabled, logger.propagate, [*logger.handlers]) for logger in loggers
    ]
    for logger in loggers:  # a fixture of a module may have disabled ours
        logger.disabled = logger.disabled and not logger.name.startswith("glc")
    yield
    sys.setrecursionlimit(limit)
    for logger, level, disabled, propagate, handlers in before:
        logger.level, logger.propagate = level, propagate
        logger.disabled = disabled and not logger.name.startswith("glc")
        # pytest adds and removes its own handlers.
        now = [h for h in logger.handlers if type(h).__module__.startswith("_pytest")]
        logger.handlers[:] = [h for h in handlers if not type(h).__module__.startswith("_pytest")] + now
    known = {logger for logger, *_ in before}
    for logger in logging.Logger.manager.loggerDict.values():
        if isinstance(logger, logging.Logger) and logger not in known:
            logger.disabled = False
    root.manager._clear_cache()  # type: ignore[attr-defined]


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Use no network and an empty cache of weights; return the cache's folder."""
    home = tmp_path_factory.mktemp("torch")
    monkeypatch.setenv("GLC_OFFLINE", "1")
    monkeypatch.setenv("TORCH_HOME", str(home))
    return home / "hub" / "checkpoints"
