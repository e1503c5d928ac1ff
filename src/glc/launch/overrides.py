"""Overrides on the command line: checks, suggestions, and the names of a sweep's jobs."""

import argparse
import difflib
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import hydra
from hydra import initialize_config_dir, version

# Not hydra.main: it reads sys.argv, which must stay as typed (`glc train ...`), since Lightning starts the
# other processes of a training run with it.
from hydra._internal.utils import _run_hydra, get_args_parser
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import (
    ChoiceSweep,
    Glob,
    IntervalSweep,
    Override,
    QuotedString,
    RangeSweep,
    Sweep,
)
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from glc.launch.config import CONF, UsageError, folder_of, output_dir, per_device, run_dir, total_steps
from glc.launch.help import choices
from glc.launch.schema import TRAINER_ARGUMENTS, checked, conform, kind_of
from glc.launch.values import BOOLEAN, WORDS, Accepted, shown

SEARCH = "hydra.searchpath"
"""Key of the user's own configuration folders."""
SWEPT_KEYS = "GLC_SWEPT_KEYS"
"""Environment variable with the swept keys, for the jobs of a sweep in any process."""


class Command(NamedTuple):
    """A command line that has been checked."""

    args: argparse.Namespace
    """Hydra's flags, and the overrides with `no` and the like as true or false."""
    config_name: str
    """The primary configuration."""
    cfg: DictConfig | None
    """The configuration, with the first value of each swept key; None if it is not one of ours."""
    complete: bool = False
    """Whether `cfg` is the configuration of exactly these words: none is a sweep or a setting of Hydra."""


_passed: dict[tuple[tuple[str, ...], str], Command] = {}
"""A command line that has just been checked."""


def check_once(words: Sequence[str], config_name: str) -> Command:
    """Examine a command line that `command_line` will run next, which then does not check it again."""
    command = examine(words, config_name)
    _passed[tuple(words), config_name] = command
    return command


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
    try:
        command = _passed.pop((tuple(words), config_name), None) or examine(words, config_name)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    remember_swept_keys(command.args.overrides)
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # for `_target_`s of the user's own modules, as with `python -m`
    version.setbase("1.3")
    try:
        _run_hydra(
            args=command.args,
            args_parser=get_args_parser(),
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
        UsageError: a key or a choice does not exist, or a key does not accept its value.
    """
    folder = [] if config_dir is None else ["--config-dir", str(config_dir)]
    command = examine([*folder, *overrides], config_name)
    if command.complete and command.cfg is not None:
        return command.cfg
    cfg = _composed(command.args, command.config_name, command.args.overrides)
    return conform(cfg, command.config_name)


def parse_arguments(words: Sequence[str]) -> argparse.Namespace:
    """Parse Hydra's flags, which may stand before, between and after the overrides."""

    def fail(message: str) -> NoReturn:
        raise UsageError(f"{message}; see --help, or --hydra-help for Hydra's flags")

    parser = get_args_parser()
    parser.error = fail  # type: ignore[method-assign]
    return parser.parse_intermixed_args(list(words))


def _composed(args: argparse.Namespace, config_name: str, words: Sequence[str]) -> DictConfig:
    """Compose a configuration.

    Raises:
        UsageError: Hydra cannot compose it.
    """
    try:
        return _compose(args, config_name, words)
    except (HydraException, OmegaConfBaseException) as error:
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


@contextmanager
def search_path(args: argparse.Namespace) -> Iterator[None]:
    """Initialise Hydra with the folder of the configuration and, as its command line does, `--config-dir`."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        if args.config_dir is not None:
            loader: Any = GlobalHydra.instance().config_loader()
            path = loader.get_search_path()
            place = SearchPathQuery(provider="schema")
            path.prepend("command-line", f"file://{Path(args.config_dir).resolve()}", place)
            loader.repository.initialize_sources(path)
        yield


def _compose(args: argparse.Namespace, config_name: str, words: Sequence[str]) -> DictConfig:
    with search_path(args):
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


def _parse(words: Sequence[str]) -> list[Override]:
    """Parse overrides.

    Raises:
        UsageError: Hydra's grammar cannot read a word; the message has the quoted form if there is one.
    """
    return [_parse_one(word) for word in words]


def _parse_one(word: str) -> Override:
    parser = OverridesParser.create()
    try:
        return parser.parse_override(word)
    except HydraException as error:
        key, found, value = word.partition("=")
        if not found:
            raise UsageError(f"{word}: not an override; give KEY=VALUE") from error
        whole = all(value.count(a) == value.count(b) for a, b in ("[]", "{}", "()"))
        for quoted in (_quoted_list(value), _quoted(value)) if whole else ():
            try:
                parser.parse_override(f"{key}={quoted}")
            except HydraException:
                continue
            raise UsageError(
                f"{word}: has characters that need quotes; give {_in_shell(f'{key}={quoted}')}"
            ) from error
        raise UsageError(f"{word}: cannot be read; close its brackets, or quote it") from error


def _quoted(value: str) -> str:
    """Return a value in Hydra's quotes."""
    return "'" + value.replace("'", "\\'") + "'"


def _in_shell(word: str) -> str:
    """Return a word as it is typed in a shell."""
    return shlex.quote(word) if any(character in word for character in '"\\$`!') else f'"{word}"'


def _quoted_list(value: str) -> str:
    """Return a list with each entry in quotes; another value unchanged."""
    if not (value.startswith("[") and value.endswith("]")):
        return value
    return f"[{','.join(_quoted(entry) for entry in value[1:-1].split(','))}]"


def _swept(words: Iterable[str]) -> list[str]:
    overrides = _parse([word for word in words if "=" in word and not word.startswith("-")])
    return [override.key_or_group for override in overrides if override.is_sweep_override()]


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
    for resolver in (per_device, total_steps, output_dir, run_dir, swept_name, case):
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
        for choice in (f"{key}={name}" for name in _values(override)):
            if choice in table:
                return f"{choice} is now {table[choice]}"
    return None


def _values(override: Override) -> list[Any]:
    """Return the value of an override, or those of a sweep or a list, as plain values."""
    value = override.value()
    values = value.list if isinstance(value, ChoiceSweep) else value if isinstance(value, list) else [value]
    return [entry.text if isinstance(entry, QuotedString) else entry for entry in values]


def _impossible_choice(chosen: list[Override], folders: Sequence[Path]) -> str | None:
    """Return a message for the first group whose value is not a name, or names a part of another choice."""
    for override in chosen:
        group, names = override.key_or_group, ", ".join(choices(override.key_or_group, folders))
        if override.is_delete():
            continue
        for value in _values(override):
            if isinstance(value, list):  # a list in a sweep
                continue
            if not isinstance(value, str | ChoiceSweep | RangeSweep | IntervalSweep | Glob):
                return f"{override.input_line}: not a choice; give one of {names}, or omit {group}"
            first, _, rest = str(value).partition("/")
            if rest and (CONF / group / first).is_dir():
                whole = (CONF / group / f"{first}.yaml").is_file()
                now = f"{group}={first} stage={rest}" if whole else f"{group}/{first}={rest}"
                return f"{group}={value}: part of another choice; give {now}"
    return None


def _no_such_choice(chosen: list[Override], folders: Sequence[Path]) -> str | None:
    """Return a message for the first choice without a file in the folders."""
    for override in chosen:
        group = override.key_or_group
        names = choices(group, folders)
        for value in _values(override):
            known = any((folder / group / f"{value}.yaml").is_file() for folder in folders)
            if isinstance(value, str) and not known and not override.is_delete():
                near = difflib.get_close_matches(value, names, n=1)
                meant = f" (did you mean {near[0]}?)" if near else ""
                return f"{group}={value}: no such choice{meant}; give one of {', '.join(names)}"
    return None


def _unknown_key(changed: list[Override], cfg: DictConfig, groups: Iterable[str]) -> str | None:
    """Return a message for the first key that does not exist."""
    known = list(_keys(cfg))
    for override in changed:
        for key in _named(override, known):
            if key in known:
                continue
            section, _, leaf = key.rpartition(".")
            word = str(override.input_line)
            if section == "trainer" and leaf in TRAINER_ARGUMENTS:
                return f"{key}: not in the configuration; to pass it to Lightning's Trainer give +{word}"
            siblings = [k for k in known if k.rpartition(".")[2] == leaf]
            near = difflib.get_close_matches(key, [*known, *groups], n=3, cutoff=0.7)
            meant = list(dict.fromkeys([*near, *siblings]))[:3]
            hint = f"did you mean {' or '.join(meant)} ?" if meant else "see --cfg job for all keys"
            added = (
                f"; a new argument is +{word}"
                if f"{section}._target_" in known and section != "trainer"
                else ""
            )
            return f"{key}: no such key; {hint.replace(' ?', '?')}{added}"
    return None


def _typed(override: Override, cfg: DictConfig, config_name: str) -> str:
    """Return the word of an override, with true or false for `no` and the like where the key expects it.

    Raises:
        UsageError: the key does not accept a value.
    """
    word, key, value = str(override.input_line), override.key_or_group, override.value()
    kind = kind_of(cfg, config_name, key)
    if kind is None and isinstance(OmegaConf.select(cfg, key, throw_on_resolution_failure=False), bool):
        kind = Accepted("", lambda given: BOOLEAN.convert(given) if str(given).lower() in WORDS else given)
    if kind is None or override.is_delete() or isinstance(value, list | dict):
        return word
    plain = _values(override)
    if any(isinstance(entry, list | dict | Sweep) for entry in plain):
        return word  # checked when composed
    converted = [checked(key, entry, kind) for entry in plain]
    if all(isinstance(new, bool) for new in converted) and converted != plain:
        return f"{word.partition('=')[0]}={','.join(map(shown, converted))}"
    return word


def _first(override: Override) -> str | None:
    """Return the word with the first value of a sweep; None where there is no list of values."""
    if not override.is_sweep_override():
        return str(override.input_line)
    if not (override.is_choice_sweep() or override.is_range_sweep()):
        return None
    start = str(override.input_line).partition("=")[0]
    return f"{start}={next(override.sweep_string_iterator())}"


def explain_overrides(arguments: Sequence[str], config_name: str = "train") -> str | None:
    """Return the message of `examine` for a command line, or None if it is valid."""
    try:
        examine(arguments, config_name)
    except UsageError as error:
        return str(error)
    return None


def examine(arguments: Sequence[str], config_name: str = "train") -> Command:
    """Check a command line: flags, choices, keys and values, without importing torch.

    Groups, choices and keys of the user's own folders (`--config-dir`, `hydra.searchpath`) are valid.

    Args:
        arguments: its words.
        config_name: the primary configuration, unless `--config-name` gives another.

    Raises:
        UsageError: a word cannot be read, was renamed since 0.1, or names a key or a choice that does not
            exist; a key does not accept its value; or stages are swept.
    """
    args = parse_arguments(arguments)
    if args.config_path is not None or args.hydra_help or args.shell_completion or args.info is not None:
        return Command(
            args, args.config_name or config_name, None
        )  # not our configuration, or Hydra's answer
    if args.config_dir is not None and not Path(args.config_dir).is_dir():
        raise UsageError(f"--config-dir {args.config_dir}: no such folder")
    primary = args.config_name or config_name
    overrides = _parse(args.overrides)
    _raise(_renamed(overrides, primary))
    folders = _folders(args, primary)
    groups = {path.relative_to(f).as_posix() for f in folders for path in f.rglob("*") if path.is_dir()}
    # `stage={name: x}` changes the section of the group's name; `stage=x` chooses from the group.
    chosen = [
        o
        for o in overrides
        if o.key_or_group in groups
        and not o.key_or_group.startswith("hydra")
        and not isinstance(o.value(), dict)
    ]
    _raise(_impossible_choice(chosen, folders))
    values = [o for o in overrides if o not in chosen and not o.key_or_group.startswith("hydra")]
    search = [str(o.input_line) for o in overrides if o.key_or_group == SEARCH]
    first = [*search, *filter(None, map(_first, chosen))]
    try:
        base = _composed(args, primary, first)
    except UsageError as error:
        _raise(_no_such_choice(chosen, folders))
        group = re.match(r"You must specify '(\S+)'", str(error))
        if group is None:
            raise
        names = ", ".join(choices(group[1], folders))
        raise UsageError(f"{group[1]}: no value; give {group[1]}=..., one of {names}") from error
    _raise(_no_such_choice([o for o in chosen if o.is_sweep_override()], folders))
    added = [o for o in values if o.is_add() or o.is_force_add() or o.is_delete()]
    changed = [o for o in values if o not in added]
    words = {id(o): _typed(o, base, primary) for o in values}
    _raise(_unknown_key(changed, base, groups))
    if config_name == "train" and any(o.key_or_group == "stage" and o.is_sweep_override() for o in chosen):
        raise UsageError(
            "stage: cannot be swept, since each starts from the previous one; run one command per stage"
        )
    args.overrides = [words.get(id(o), str(o.input_line)) for o in overrides]
    # Hydra's own settings, but for its search path, are not composed here.
    own = [o for o in overrides if not o.key_or_group.startswith("hydra") or o.key_or_group == SEARCH]
    one = [_first(_parse_one(words[id(o)]) if id(o) in words else o) for o in own]
    used = [word for word in one if word is not None]
    cfg = conform(base if used == first else _composed(args, primary, used), primary)
    return Command(args, primary, cfg, complete=used == args.overrides)


def _raise(problem: str | None) -> None:
    if problem:
        raise UsageError(problem)
