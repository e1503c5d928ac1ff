"""The programs in scripts/ as modules, to test their parts."""

import importlib.util
import sys
from types import ModuleType

from tests.short_runs import ROOT

SCRIPTS = ROOT / "scripts"


def load_script(name: str) -> ModuleType:
    """Return scripts/NAME.py without running it; like Python, with its folder among those of modules."""
    if str(SCRIPTS) not in sys.path:
        sys.path.append(str(SCRIPTS))
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
