"""What every test can rely on: a fixed seed, and no more threads than a small machine has."""

import gc
import logging
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

# Workers side by side share the cores: a thread for each, and for each program that a test starts.
SHARED = "PYTEST_XDIST_WORKER" in os.environ
if SHARED:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # glc.io.threads_policy; before torch is loaded

import hydra._internal.core_plugins.basic_launcher  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from hydra._internal.config_repository import ConfigRepository  # noqa: E402

from tests.warm import reading_once, skip_in_collections  # noqa: E402

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


RECURSION_LIMIT = sys.getrecursionlimit()

# Jobs that a shell starts in the background ignore SIGINT, and so would all programs that tests start.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


SLOW = tuple(f"tests/{name}" for name in ("stress", "training", "launch", "test_wheel", "test_e", "browser"))
"""What takes longest; it must not begin when the other workers have nothing left to do."""


def pytest_xdist_auto_num_workers() -> int:
    """One worker more than cores, at most four: tests also wait for programs that they start."""
    return min(4, (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1) + 1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the slow tests."""
    items.sort(key=lambda item: not item.nodeid.startswith(SLOW))


def pytest_collection_finish() -> None:
    """Let the garbage collector skip what was imported."""
    skip_in_collections()


def pytest_unconfigure() -> None:
    """Free everything at the end, as without tests."""
    gc.unfreeze()


@pytest.fixture(autouse=True, scope="session")
def logging_of_pytest() -> Iterator[None]:
    """Keep Hydra, in commands that run in process, from disabling loggers and removing pytest's handlers."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (hydra.core.utils, hydra._internal.hydra, hydra._internal.core_plugins.basic_launcher):
            patch.setattr(module, "configure_log", lambda *_: None)
        yield


@pytest.fixture(autouse=True, scope="session")
def configuration_is_read_once() -> Iterator[None]:
    """Keep the files of conf/ that Hydra has read, for the hundreds of compositions of a session."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ConfigRepository, "load_config", reading_once(ConfigRepository.load_config))
        yield


@pytest.fixture(autouse=True)
def isolated() -> None:
    """Start each test from the same random numbers, recursion limit, log levels and handler of SIGTERM.

    PyTorch's compiler raises the limit; commands and benchmarks that run in process make loggers quiet; Ray
    turns SIGTERM into `sys.exit(15)`.
    """
    torch.manual_seed(0)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    sys.setrecursionlimit(RECURSION_LIMIT)
    logging.getLogger("glc").setLevel(logging.NOTSET)
    logging.getLogger("lightning.pytorch").setLevel(logging.INFO)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.NOTSET)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Use no network and an empty cache of weights; return the cache's folder."""
    home = tmp_path_factory.mktemp("torch")
    monkeypatch.setenv("GLC_OFFLINE", "1")
    monkeypatch.setenv("TORCH_HOME", str(home))
    return home / "hub" / "checkpoints"
