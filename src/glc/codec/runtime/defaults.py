"""The codec computes with PyTorch's own defaults, whatever the calling program has set."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

_lock = threading.Lock()
_users = 0
_callers = torch.float32


@contextmanager
def standard_defaults() -> Iterator[None]:
    """Compute with default dtype float32, default device CPU and without autocast within the block.

    Also a decorator. Blocks nest and may run in several threads. The default dtype belongs to the process: it
    is set by the first of the blocks that run at a time, and returned by the last.
    """
    global _users, _callers
    with ExitStack() as stack:
        # Each of these belongs to the thread, and costs time at every call of PyTorch or entry of a block.
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        with _lock:
            if not _users:
                _callers = torch.get_default_dtype()
            _users += 1
            torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            with _lock:
                _users -= 1
                if not _users:
                    torch.set_default_dtype(_callers)
