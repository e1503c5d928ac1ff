"""Overrides on the command line: checks, suggestions, and the names of a sweep's jobs."""

import argparse
import difflib
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra import initialize_config_dir, version

# Not hydra.main: it reads sys.argv, which must stay as typed (`glc train ...`), since Lightning starts the
# other processes of a training run with it.
from hydra._internal.utils import _run_hydra, get_args_parser
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from glc.launch.config import CONF, UsageError, folder_of, output_dir, per_device

SEARCH = "hydra.searchpath"
"""Key of the user's own configuration folders."""
SWEPT_KEYS = "GLC_SWEPT_KEYS"
"""Environment variable with the swept keys, for the jobs of a sweep in any process."""


def command_line(
    task: Callable[[DictConfig], Any], config_name: str, arguments: Sequence[str] | None = None
) -> None:
    """Run a task as Hydra's command line does: overrides, `--multirun`, `--cfg job`, `--config-dir`.

    Args:
        task: takes the composed configuration; at module level, so that sweeps can run it in other processes.
        config_name: the primary configuration.
        arguments: the words of the command line; None: `sys.argv`.

    Raises:
        SystemExit: 2 for an invalid override, otherwise the exit code of the task.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    problem = explain_overrides(words, config_name)
    if problem:
        print(f"error: {problem}", file=sys.stderr)
        raise SystemExit(2)
    remember_swept_keys(words)
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # for `_target_`s of the user's own modules, as with `python -m`
    version.setbase("1.3")
    parser = get_args_parser()
    try:
        _run_hydra(
            args=parser.parse_args(words),
            args_parser=parser,
            task_function=task,
            config_path=str(CONF),
            config_name=config_name,
        )
    finally:
        HydraConfig.instance().cfg = None  # later compositions in this process are not part of a Hydra job


def compose(
    config_name: str, overrides: Sequence[str] = (), config_dir: str | Path | None = None
) -> DictConfig:
    """Compose a configuration in a notebook or a program, as the command line does.

    Args:
        config_name: `train` or `evaluate`, or a primary configuration in `config_dir`.
        overrides: the words of the command line, such as `["stage=vqvae", "model=tiny"]`.
        config_dir: folder with the user's own configuration, like `--config-dir`.

    Raises:
        UsageError: a key or a choice does not exist; the message suggests similar ones.
    """
    folder = [] if config_dir is None else ["--config-dir", str(config_dir)]
    words = [*folder, *overrides]
    problem = explain_overrides(words, config_name)
    if problem:
        raise UsageError(problem)
    args = get_args_parser().parse_args(words)
    try:
        return _compose(args, args.config_name or config_name, args.overrides)
    except HydraException as error:
        text = str(error).partition("\nConfig search path")[0]
        raise UsageError(" ".join(text.split())) from error


def _folders(args: argparse.Namespace, config_name: str) -> list[Path]:
    """Return the configuration folders, in Hydra's search order."""
    folders = [CONF, *([] if args.config_dir is None else [Path(args.config_dir).resolve()])]
    more: Any = next((o.value() for o in _parse(args.overrides) if o.key_or_group == SEARCH), None)
    if more is None:
        primary = [folder / f"{config_name}.yaml" for folder in folders]
        found = next((OmegaConf.load(file) for file in primary if file.is_file()), None)
        more = None if found is None else OmegaConf.select(found, SEARCH)
    return [*folders, *filter(None, (folder_of(str(entry)) for entry in more or ()))]


def _compose(args: argparse.Namespace, config_name: str, words: Sequence[str]) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        if args.config_dir is not None:  # as Hydra's command line does
            loader: Any = GlobalHydra.instance().config_loader()
            path = loader.get_search_path()
            place = SearchPathQuery(provider="schema")
            path.prepend("command-line", f"file://{Path(args.config_dir).resolve()}", place)
            loader.repository.initialize_sources(path)
        return hydra.compose(config_name, list(words))


RENAMED: dict[str, dict[str, str]] = {
    "train": {
        "coder": "model/variants",
        "coder=transform": "the default; omit it",
        "code_prediction=none": "model/variants=no_code_prediction",
        "code_prediction=network": "model/variants=refiner",
        "code_prediction=supervision": "the default; omit it",
        "experiment=paper_natural": "experiment=paper model=natural",
        "experiment=paper_facial": "experiment=paper model=facial",
        "experiment=paper_f8": "experiment=paper model=natural_f8",
        "perceptual.views": "perceptual.augment",
        "stage.unquantized": "stage.quantizer_bypass",
        "callbacks.codebooks.revive_every": "callbacks.codebooks.restart_every",
        "trainer=bf16": "trainer.precision=bf16-mixed",
        "trainer=torchrun": "trainer=ddp",
        **{
            f"data={name}": f"testset={name}, for glc eval; train on data=folder data.train=A data.val=B"
            for name in ("kodak", "clic2020", "div2k", "celebahq", "coco30k")
        },
    },
    "evaluate": {"data": "testset", "pictures": "testset", "effort": "optimize_latent"},
}
"""Words of 0.1 by primary configuration: a group, section, key or complete override, and its replacement."""


def case(value: str, table: Mapping[str, Any], otherwise: Any) -> Any:
    """Return the entry of a value, `${case:${model},{facial: ffhq},openimages}`."""
    return table.get(value, otherwise)


def _keys(cfg: DictConfig, prefix: str = "") -> Iterator[str]:
    for key in cfg:
        name, node = f"{prefix}{key!s}", cfg._get_node(key)
        yield name
        if isinstance(node, DictConfig) and not node._is_none():
            yield from _keys(node, f"{name}.")


def _named(override: Override, known: list[str]) -> Iterator[str]:
    """Yield the keys that an override sets: its own key, or those inside a value for a section."""

    def below(key: str, value: Any) -> Iterator[str]:
        if isinstance(value, dict) and any(k.startswith(f"{key}.") for k in known):
            for name, item in value.items():
                yield from below(f"{key}.{name}", item)
        else:
            yield key

    yield from below(override.key_or_group, override.value())


def _parse(arguments: Sequence[str]) -> list[Override]:
    """Return the overrides on a command line; none if Hydra cannot parse them, which it reports itself."""
    words = [a for a in arguments if "=" in a and not a.startswith("-")]
    try:
        return OverridesParser.create().parse_overrides(words)
    except HydraException:
        return []


def _swept(words: Iterable[str]) -> list[str]:
    return [override.key_or_group for override in _parse(list(words)) if override.is_sweep_override()]


def remember_swept_keys(arguments: Sequence[str]) -> None:
    """Store the swept keys for `swept_name`, in this process and in processes that it starts."""
    os.environ[SWEPT_KEYS] = ",".join(_swept(arguments))


def swept_name(overrides: list[str], otherwise: str, params: Mapping[str, Any] | None = None) -> str:
    """Return the folder name of a sweep's job: its values of the swept keys, `stage.lmbda-2_seed-1`.

    Args:
        overrides: the job's overrides, as `KEY=VALUE`.
        otherwise: the name if no key is known to be swept.
        params: a sweep configured in YAML, `hydra.sweeper.params`.
    """
    written = _swept(f"{key}={value}" for key, value in (params or {}).items())
    swept = [*os.environ.get(SWEPT_KEYS, "").split(","), *written]
    given = (override.lstrip("+").partition("=")[::2] for override in overrides)
    parts = [f"{key}-{value}" for key, value in given if key in swept]
    # A single path component that is also valid in an override.
    return "_".join(parts).translate(str.maketrans("/=,", "---", "[]")) or otherwise


def register_resolvers() -> None:
    """Register the resolvers `${...:}`; also needed in processes that receive a pickled configuration."""
    for resolver in (per_device, output_dir, swept_name, case):
        OmegaConf.register_new_resolver(resolver.__name__, resolver, replace=True)


register_resolvers()


def _renamed(overrides: list[Override], config_name: str) -> str | None:
    """Return a message for the first override that was renamed since 0.1."""
    table = RENAMED.get(config_name, {})
    for override in overrides:
        word = str(override.input_line).lstrip("+~")
        key = override.key_or_group
        old = next((name for name in (key, key.partition(".")[0]) if name in table), None)
        now = table.get(word) or (word.replace(old, table[old], 1) if old else None)
        if now:
            return f"{word} is now {now}"
    return None


def _impossible_choice(chosen: list[Override], folders: Sequence[Path]) -> str | None:
    """Return a message for the first group whose value is not a name."""
    for override in chosen:
        group, value = override.key_or_group, override.value()
        if not (override.is_delete() or override.is_sweep_override() or isinstance(value, str | list)):
            names = sorted({path.stem for folder in folders for path in (folder / group).glob("[!_]*.yaml")})
            return f"{override.input_line}: not a choice; give one of {', '.join(names)}, or omit {group}"
    return None


def explain_overrides(arguments: Sequence[str], config_name: str = "train") -> str | None:
    """Return a message for the first invalid override, or None.

    Invalid are: a key renamed since 0.1, an unknown key, a group without a choice, and a sweep over stages.
    Groups and keys of the user's own folders (`--config-dir`, `hydra.searchpath`) are valid. Other errors,
    such as an unknown choice, are reported by Hydra.

    Args:
        arguments: the words of the command line.
        config_name: the primary configuration, unless `--config-name` gives another.
    """
    args = get_args_parser().parse_args(arguments)
    if args.config_path is not None:
        return None  # not our configuration
    if args.config_dir is not None and not Path(args.config_dir).is_dir():
        return f"--config-dir {args.config_dir}: no such folder"
    primary = args.config_name or config_name
    overrides = _parse(args.overrides)
    if renamed := _renamed(overrides, primary):
        return renamed
    folders = _folders(args, primary)
    groups = {path.relative_to(f).as_posix() for f in folders for path in f.rglob("*") if path.is_dir()}
    groups |= {"hydra/launcher", "hydra/sweeper"}
    # `stage={name: x}` changes the section of the group's name; `stage=x` chooses from the group.
    chosen = [o for o in overrides if o.key_or_group in groups and not isinstance(o.value(), dict)]
    impossible = _impossible_choice([o for o in chosen if not o.key_or_group.startswith("hydra")], folders)
    if impossible:
        return impossible
    changed = [
        o
        for o in overrides
        if o not in chosen
        and not o.key_or_group.startswith("hydra.")
        and not (o.is_add() or o.is_force_add() or o.is_delete())
    ]
    # One choice of a sweep is enough to find the keys.
    choices = [
        str(o.input_line).split(",")[0] if o.is_sweep_override() else str(o.input_line)
        for o in overrides
        if o.key_or_group == SEARCH or (o in chosen and not o.key_or_group.startswith("hydra"))
    ]
    try:
        cfg = _compose(args, primary, choices)
    except HydraException:
        return None
    known = list(_keys(cfg))
    for key in (key for override in changed for key in _named(override, known)):
        if key in known:
            continue
        leaf = key.rpartition(".")[2]
        siblings = [k for k in known if k.rpartition(".")[2] == leaf]
        near = difflib.get_close_matches(key, [*known, *groups], n=3, cutoff=0.7)
        meant = list(dict.fromkeys([*near, *siblings]))[:3]
        hint = f"did you mean {' or '.join(meant)}?" if meant else "see --cfg job for all keys"
        return f"{key}: no such key; {hint}"
    if config_name == "train" and any(o.key_or_group == "stage" and o.is_sweep_override() for o in chosen):
        return "stage: cannot be swept, since each starts from the previous one; run one command per stage"
    return None
