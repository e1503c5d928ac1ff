"""The house's rules that a machine can check: who may import whom, and what files may look like.

Everything is derived from the tree. A new package of `glc` needs a row in `MAY_IMPORT`.
"""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.programs import fresh

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "src").rglob("*.py"))

# Packages of glc from the lowest to the highest; each may import the packages that it names, all of which
# come before it. Reading images, data.images, counts as a package of its own; "" is glc/__init__.py.
# CONTRIBUTING.md has a copy of this table: GLC_UPDATE=1 pytest tests/test_architecture.py -k contributing
MAY_IMPORT: dict[str, str] = {
    "errors": "",
    "hub": "errors",
    "layers": "",
    "pretrained": "",
    "io": "errors",
    "data.images": "errors",
    "models": "layers",
    "losses": "errors layers",
    "metrics": "data.images layers losses",
    "codec": "errors hub io data.images layers models pretrained",
    "pillow": "errors codec",
    "": "errors codec",
    "fused": "codec layers losses",
    "latent_optimization": "codec fused losses models",
    "jobs": "errors io",
    "data": "errors io data.images pillow jobs",
    "training": "errors io data.images layers models losses metrics codec fused data",
    "evaluation": "glc errors io data.images models metrics codec latent_optimization jobs data",
    "launch": "errors io losses metrics codec jobs training evaluation",
    "app": "errors data.images losses metrics codec",
    "cli": "glc errors hub io data.images codec latent_optimization jobs data evaluation launch app",
    "__main__": "cli",
}
# What installing glc without extras brings, by import name, and the packages that need no more.
CORE = {"onnxruntime", "numpy", "PIL", "safetensors", "constriction", "click", "tqdm", "braceexpand"}
CORE_PARTS = {"", "errors", "io", "layers", "models", "codec", "pillow", "pretrained", "data.images"}
CONFIGURATION = {"hydra", "omegaconf", "hydra_plugins"}
LIGHTNING = {"lightning", "pytorch_lightning", "lightning_fabric"}
TRAINING_STACK = CONFIGURATION | LIGHTNING | {"wandb"}


def allowed(part: str) -> set[str]:
    """The packages that a package may import; `glc` in the table is glc/__init__.py, "" here."""
    return {"" if name == "glc" else name for name in MAY_IMPORT[part].split()}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT / "src").with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(source: str, module: str, is_package: bool) -> Iterator[tuple[int, str]]:
    """Line and absolute name of each import, wherever it stands; `from a import b` gives `a.b`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = module.split(".")[: len(module.split(".")) - node.level + is_package]
                base = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def part_of(name: str) -> str:
    """The part of glc that a module or one of its names belongs to: `glc.models.coder.X` is of `models`."""
    names = name.split(".")[1:]
    if names[:2] == ["data", "images"]:
        return "data.images"
    # A name that is no module comes from glc/__init__.py, as in `from glc import load`.
    found = names and (
        (ROOT / "src/glc" / names[0]).is_dir() or (ROOT / "src/glc" / f"{names[0]}.py").is_file()
    )
    return names[0] if found else ""


def complaints(source: str, module: str, is_package: bool = False) -> list[str]:
    """What a source text under src/glc does against the rules on imports."""
    part = part_of(module)
    if part not in MAY_IMPORT:
        return [f"{module}: glc.{part} is new; say in MAY_IMPORT what it may import"]
    found = []
    for line, name in imported(source, module, is_package):
        top = name.split(".")[0]
        where = f"{module}, line {line}: {name}"
        if top == "glc":
            target = part_of(name)
            if target != part and target not in allowed(part):
                found.append(f"{where}: glc.{part} may import {sorted(allowed(part))} of glc")
        elif top == "src":
            found.append(f"{where}: the library does not know its entries")
        elif top in CONFIGURATION and part != "launch":
            found.append(f"{where}: only glc.launch composes and instantiates")
        elif top in LIGHTNING and part not in ("training", "launch") and module != "glc.data.module":
            found.append(f"{where}: lightning is for glc.training and glc.data.module")
        elif top == "wandb" and part not in ("training", "launch"):
            found.append(f"{where}: logging is for glc.training")
        elif part in CORE_PARTS and top not in CORE | {"torch"} | sys.stdlib_module_names:
            found.append(f"{where}: glc.{part} needs no more than {sorted(CORE)}")
    return found


@pytest.mark.parametrize(
    "path", [path for path in SOURCES if path.is_relative_to(ROOT / "src/glc")], ids=module_name
)
def test_imports_follow_the_layout(path: Path) -> None:
    assert not complaints(path.read_text("utf-8"), module_name(path), path.name == "__init__.py")


@pytest.mark.parametrize(
    ("module", "source", "complaint"),
    [
        ("glc.models.coder", "from glc.training import stage", "may import ['layers'] of glc"),
        ("glc.layers.blocks", "def f():\n    import glc.models.coder", "line 2: glc.models.coder"),
        ("glc.layers.blocks", "from ..losses import latent", "glc.losses.latent"),
        ("glc.models.coder", "from ..data.images import to_tensor", "glc.data.images.to_tensor"),
        ("glc.training.stages.base", "from omegaconf import DictConfig", "only glc.launch"),
        ("glc.data.shards", "import lightning as L", "lightning is for"),
        ("glc.metrics.quality", "from wandb import Image", "logging is for"),
        ("glc.codec.codec", "import torchvision", "glc.codec needs no more than"),
        ("glc.models.coder", "import src.train", "does not know its entries"),
    ],
)
def test_the_check_sees_violations(module: str, source: str, complaint: str) -> None:
    (found,) = complaints(source, module)
    assert complaint in found


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("glc.models.coder", "from glc.layers.blocks import X\nfrom .quantizer import Y\nimport math, torch"),
        ("glc.codec.codec", "import constriction\nfrom glc.data.images import read_rgb"),
        ("glc.data.module", "import lightning as L\nfrom glc.data import shards"),
    ],
)
def test_the_check_lets_the_rest_pass(module: str, source: str) -> None:
    assert not complaints(source, module)


def test_packages_import_downwards_only() -> None:
    order = list(MAY_IMPORT)
    upward = {
        (part, name) for part in order for name in allowed(part) if order.index(name) >= order.index(part)
    }
    assert not upward


def test_the_table_allows_nothing_that_is_not_used() -> None:
    used: dict[str, set[str]] = {part: set() for part in MAY_IMPORT}
    for path in SOURCES:
        if path.is_relative_to(ROOT / "src/glc"):
            module = module_name(path)
            names = imported(path.read_text("utf-8"), module, path.name == "__init__.py")
            used[part_of(module)] |= {part_of(name) for _, name in names if name.split(".")[0] == "glc"}
    assert {part: allowed(part) - used[part] for part in MAY_IMPORT if allowed(part) - used[part]} == {}


def test_contributing_has_the_table() -> None:
    rows = ["| package of `glc` | may import |", "|---|---|"]
    for part, names in MAY_IMPORT.items():
        listed = ", ".join(f"`{name}`" for name in names.split()) or "nothing of `glc`"
        rows.append(f"| `{part or 'glc/__init__.py'}` | {listed} |")
    path = ROOT / "CONTRIBUTING.md"
    text = path.read_text("utf-8")
    start, end = "<!-- import rules -->\n", "<!-- end of import rules -->"
    current = text.partition(start)[2].partition(end)[0]
    wanted = "\n".join(["", *rows, "", ""])
    if os.environ.get("GLC_UPDATE") == "1":
        path.write_text(text.replace(start + current + end, start + wanted + end), "utf-8")
    else:
        assert current == wanted, "GLC_UPDATE=1 pytest tests/test_architecture.py -k contributing"


# Test files that test no single module, by folder of tests/, and why they exist.
CROSS_CUTTING = {
    "": "architecture documents extending oddities tooling wheel",  # the repository, all commands
    "app": "web_integers",  # src/glc/app/web, in JavaScript
    "cli": "decompress failures latent_optimization",  # commands
    "codec": "golden images quality real_size reference_decoder refusals"
    " robustness shipped user_networks waits",  # files
    "codec/convert": "reference refusals vectors",  # published networks
    "io": "one_writer",  # all of glc
    "launch": "entry_commands optuna_sweeper",  # processes; src/hydra_plugins
    "metrics": "full",  # published weights
    "models": "parameter_counts",  # the paper's sizes
    "training": "applications configured_losses distributed finite_scalars resume wandb",  # runs
}
# Modules without a test file of their own, and the test file that tests them.
TESTED_BY = {
    "app/page": "browser/test_page",
    "codec/convert": "codec/convert/test_convert",
    "codec/entropy/latent_coding": "codec/test_codec",
    "codec/base": "codec/test_codec",
    "codec/entropy/symbols": "codec/test_codec",
    "codec/onnx/graph": "codec/onnx/test_networks",
    "codec/onnx/latent_coding": "codec/onnx/test_codec",
    "codec/onnx/runtime": "codec/onnx/test_codec",
    "codec/onnx/weights": "codec/onnx/test_codec",
    "codec/prebuilt": "codec/test_native",
    "codec/runtime": "codec/runtime/test_tiled_networks",
    "codec/weights/labels": "codec/weights/test_file",
    "codec/weights/variants": "codec/weights/test_catalog",
    "cli/shard_files": "cli/test_shards",
    "codec/stages": "codec/test_codec",
    "data/shard_writer": "data/test_pack",
    "errors": "codec/test_refusals",
    "evaluation/evaluator": "evaluation/test_evaluate",
    "evaluation/summary": "evaluation/test_evaluate",
    "jobs/engines": "jobs/test_run",
    "evaluation/web_page": "evaluation/test_report",
    "jobs/manifest": "jobs/test_worker",
    "launch/hardware": "launch/test_failures",
    "launch/lineage": "launch/test_dashboard",
    "launch/help": "launch/test_commands",
    "launch/values": "launch/test_schema",
    "metrics/codebook": "training/callbacks/test_codebook",
    "models/protocols": "codec/test_user_networks",
    "models/quadtree": "models/test_context",
    "training/artifacts": "launch/test_dashboard",
    "training/wandb_run": "training/test_loggers",
    "training/callbacks": "training/test_stages",
}


def test_tests_mirror_the_modules() -> None:
    root = ROOT / "src/glc"
    stray = []
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        folder, name = path.parent.relative_to(ROOT / "tests"), path.stem.removeprefix("test_")
        if folder.parts[:1] in (("browser",), ("benchmarks",), ("scripts",), ("stress",)):
            continue
        place = root / folder / name
        if (
            not (place.with_suffix(".py").is_file() or place.is_dir())
            and name not in CROSS_CUTTING.get(folder.as_posix().removeprefix("."), "").split()
        ):
            stray.append(str(path.relative_to(ROOT)))
    assert not stray, "name the module that each tests, or list it in CROSS_CUTTING"


def test_every_module_has_a_test_file() -> None:
    tests = {
        path.relative_to(ROOT / "tests").with_suffix("").as_posix()
        for path in (ROOT / "tests").rglob("test_*.py")
    }
    assert set(TESTED_BY.values()) <= tests
    untested = []
    for path in (ROOT / "src/glc").rglob("*.py"):
        module = path.relative_to(ROOT / "src/glc").with_suffix("")
        if path.stem in ("__init__", "__main__"):
            continue
        above = [module, *module.parents[:-1]]  # a test of a package tests its modules
        own = [(place.parent / f"test_{place.name}").as_posix() for place in above]
        if not tests & set(own) and not any(place.as_posix() in TESTED_BY for place in above):
            untested.append(module.as_posix())
    assert not untested, "write tests/PLACE/test_NAME.py, or say in TESTED_BY what tests it"


def test_the_codec_runs_without_torch() -> None:
    """Everything that `glc compress` and `glc decompress` import, with torch missing."""
    modules = ["glc.codec.load", "glc.cli.compress", "glc.cli.codecs", "glc.cli.files", "glc.data.images"]
    modules += [module_name(path) for path in SOURCES if path.parent.name == "onnx" and path.stem != "export"]
    program = "import sys; sys.modules['torch'] = None\nfor name in sys.argv[1:]: __import__(name)"
    done = fresh(["-c", program, *modules])
    assert done.returncode == 0, done.stderr


BLOCKED_IMPORTS = """
import importlib, sys

class Blocker:
    def __init__(self, names): self.names = names
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in self.names:
            raise ImportError(f"{name} is not for this part of glc")

core, training = Blocker(sys.argv[1].split(",")), Blocker(sys.argv[2].split(","))
sys.meta_path[:0] = [core, training]
for name in sys.argv[3].split(","):
    importlib.import_module(name)
sys.meta_path.remove(core)
for name in sys.argv[4].split(","):
    importlib.import_module(name)
"""


def test_the_library_imports_without_the_training_stack() -> None:
    modules = {module_name(path): path for path in SOURCES if path.is_relative_to(ROOT / "src/glc")}
    core = [name for name in modules if part_of(name) in CORE_PARTS]
    losses = [name for name in modules if part_of(name) == "losses"]
    assert {"glc", "glc.models", "glc.codec", "glc.layers"} <= set(core)
    extras = "torchvision,torchmetrics,lpips,webdataset,torchdata,matplotlib,skimage,sklearn,scipy"
    arguments = [extras, ",".join(TRAINING_STACK), ",".join(core), ",".join(losses)]
    # torch itself looks for some of these when it starts and does without them.
    done = fresh(["-c", BLOCKED_IMPORTS, *arguments])
    assert done.returncode == 0, done.stderr


def test_no_catch_all_modules() -> None:
    assert not [path for path in tracked() if path.name in ("utils.py", "util.py", "helpers.py", "misc.py")]


def test_source_files_stay_short() -> None:
    lengths = {path.relative_to(ROOT): len(path.read_text("utf-8").splitlines()) for path in SOURCES}
    assert not {str(path): length for path, length in lengths.items() if length > 500}


def test_every_configuration_explains_itself() -> None:
    files = [path for path in tracked() if path.suffix == ".yaml" and path.is_relative_to(ROOT / "conf")]
    assert files
    silent = [path for path in files if not re.search(r"^\s*# (?!@package)\S", path.read_text("utf-8"), re.M)]
    assert not [str(path.relative_to(ROOT)) for path in silent]


def tracked() -> list[Path]:
    command = ["git", "-c", "safe.directory=*", "-C", str(ROOT), "ls-files", "-z"]
    names = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\0")
    return [ROOT / name for name in names if name and (ROOT / name).is_file()]


def test_no_file_names_a_path_of_some_machine() -> None:
    local_path = re.compile(rb"(?<![\w.:/-])/(?:home|Users|root|work)/[\w.-]+")
    found = []
    for path in tracked():
        content = path.read_bytes()
        if b"\0" not in content:
            found += [f"{path.relative_to(ROOT)}: {match.decode()}" for match in local_path.findall(content)]
    assert not found
