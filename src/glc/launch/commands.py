"""The commands `glc train` and `glc eval`: help, completion and all checks come before torch is imported."""

import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from glc.io import threads_policy
from glc.io.names import escape_output
from glc.launch.config import CONF, UsageError


def train(arguments: Sequence[str] | None = None, program: str = "python -m src.train") -> None:
    """Run `glc train`.

    Args:
        arguments: the words of the command line; None: `sys.argv`.
        program: the command, for the help.

    Raises:
        SystemExit: 2 if the run cannot start, otherwise its exit code.
    """
    if _answered(arguments, "train", program):
        return
    from glc.launch.train import main

    main(arguments)


def evaluate(
    arguments: Sequence[str] | None = None,
    shards: Sequence[str] = (),
    program: str = "python -m src.evaluate",
) -> None:
    """Run `glc eval`; arguments as in `train`, `shards` as in `glc.launch.evaluate.evaluate`."""
    if _answered(arguments, "evaluate", program, shards):
        return
    from glc.launch.evaluate import main

    main(arguments, shards)


def _answered(
    arguments: Sequence[str] | None, config_name: str, program: str, shards: Sequence[str] = ()
) -> bool:
    """Print help or completions if they are asked for; otherwise check the command line."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    escape_output()
    try:
        if "--help" in words or "-h" in words:
            from glc.launch.help import help_text

            print(help_text(config_name, program, _folders(words)))
        elif words[:1] in (["--completion"], ["--complete"]):
            from glc.launch.completion import candidates, script

            given = words[1] if len(words) > 1 else ""
            found = script(given) if words[0] == "--completion" else candidates(given, config_name)
            print(found if isinstance(found, str) else "\n".join(found))
        else:
            from glc.launch.checks import check_command, local_processes, trains_bfloat16

            cfg = check_command(words, config_name, shards)
            if cfg is None:
                threads_policy.choose(words)
            else:
                threads_policy.choose(words, local_processes(cfg), trains_bfloat16(cfg))
            return False
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    return True


def _folders(words: Sequence[str]) -> list[Path]:
    """Return the folders of the configuration, with that of `--config-dir`."""
    own = [Path(b) for a, b in pairwise(words) if a in ("--config-dir", "-cd")]
    return [CONF, *own]
