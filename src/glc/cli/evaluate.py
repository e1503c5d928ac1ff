"""The command `glc eval`: what `python -m glc.launch.evaluate` is in a checkout, from anywhere."""

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import click

import glc
from glc.cli.errors import NothingDoneError

_PARTS = ("glc/launch/evaluate.py", "glc/launch/overrides.py", "conf/evaluate.yaml")
_PACKAGES = ("hydra", "omegaconf", "torchvision", "torchmetrics", "lpips")
"""Of the extra `eval`; what single codecs and metrics need is named when they are asked for."""


@click.command(
    "eval", context_settings={"ignore_unknown_options": True, "help_option_names": ["-h", "--help"]}
)
@click.option(
    "--shards",
    multiple=True,
    metavar="PATTERN",
    help="Pictures in tar shards: files, folders, patterns like 'val-{000..099}.tar'; may be repeated.",
)
@click.argument("arguments", metavar="[KEY=VALUE]...", nargs=-1, type=click.UNPROCESSED)
def evaluate(arguments: tuple[str, ...], shards: tuple[str, ...]) -> None:
    """Measure codecs on a folder or a known set of pictures.

    \b
    glc eval codec=mine.safetensors testset=folder testset.path=PHOTOS out=RESULTS
    glc eval codec=jpeg qualities=[5,10] testset=kodak testset.path=KODAK out=RESULTS
    glc eval codec=[mine.safetensors,vvc] target_bpp=[0.03] testset.path=PHOTOS out=RESULTS
    glc eval --shards 'val-{000..099}.tar' codec=mine.safetensors out=RESULTS processes=8

    Each picture is compressed to bytes and decompressed from them. RESULTS gets summary.json, per_image.csv,
    the files and the pictures decoded from them. The same command goes on where an evaluation was broken off.
    metrics.weights_dir=DIR names a folder with the metrics' weights. `--cfg job` shows all keys.
    """
    root = find_entry()
    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if missing:
        raise NothingDoneError(f"the package {missing[0]} is missing: pip install 'glc[eval]'")
    words = [*arguments, *_shard_words(shards, arguments)]
    # Where `src` is looked for; paths on the command line stay relative to where the user is.
    paths = [str(root), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run([sys.executable, "-m", "glc.launch.evaluate", *words], env=environment, check=False)
    if done.returncode:
        raise click.exceptions.Exit(done.returncode)


def _shard_words(shards: Sequence[str], arguments: Sequence[str]) -> list[str]:
    """Return what says the same to Hydra, whose grammar has braces and commas of its own."""
    if not shards:
        return []
    quoted = ["'" + re.sub(r"(\\*)'", r"\1\1\\'", re.sub(r"(\\+)$", r"\1\1", item)) + "'" for item in shards]
    chosen = any(word.startswith("testset=") for word in arguments)
    return [*([] if chosen else ["testset=shards"]), f"testset.path=[{','.join(quoted)}]"]


def find_entry() -> Path:
    """Return the folder that holds `glc/launch/evaluate.py` and `conf`: a checkout's, or what came with the package.

    Raises:
        NothingDoneError: there is none.
    """
    package = Path(glc.__file__).resolve().parent
    for root in (package.parents[1], package / "entry"):
        if all((root / part).is_file() for part in _PARTS):
            return root
    raise NothingDoneError(
        "glc eval needs the evaluation's configuration (conf/) and this installation has none: get a "
        "checkout of the project, run `pip install -e '.[eval]'` in it, and use its glc"
    )
