"""The programs in scripts/ as modules, to test their parts."""

import importlib.util
from types import ModuleType

from tests.short_runs import ROOT


def load_script(name: str) -> ModuleType:
    """Return scripts/NAME.py without running it."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
