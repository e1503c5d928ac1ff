"""Completion of overrides in bash: groups, choices and keys."""

from typing import Any

from hydra._internal.core_plugins.bash_completion import BashCompletion
from hydra.core.global_hydra import GlobalHydra

from glc.launch.config import UsageError
from glc.launch.overrides import parse_arguments, search_path

FLAGS = ("--cfg", "--completion", "--config-dir", "--config-name", "--help", "--hydra-help", "--multirun")

# Bash splits words at `=`, and replaces only what follows it.
SCRIPT = r"""_glc_complete() {
    local line="${COMP_LINE:0:COMP_POINT}" current="${COMP_WORDS[COMP_CWORD]}" program words word kept
    if [[ $line =~ ^([^ ]*glc\ +(train|eval))\ +(.*)$ ]]; then
        program="${BASH_REMATCH[1]}" words="${BASH_REMATCH[3]}"
    elif [[ $line =~ ^([^ ]*python[0-9.]*\ +-m\ +src\.(train|evaluate))\ +(.*)$ ]]; then
        program="${BASH_REMATCH[1]}" words="${BASH_REMATCH[3]}"
    else
        return
    fi
    [[ $current == "=" || $current == ":" ]] && current=""
    word="${words##* }"
    kept="${word%"$current"}"
    mapfile -t COMPREPLY < <($program --complete "$words" 2>/dev/null)
    COMPREPLY=("${COMPREPLY[@]#"$kept"}")
    [[ ${#COMPREPLY[@]} != 1 || ${COMPREPLY[0]} == *[=./] ]] && compopt -o nospace
}
complete -o default -F _glc_complete glc python python3 .venv/bin/python .venv/bin/glc
"""


def script(shell: str) -> str:
    """Return the text to `eval` in a shell.

    Raises:
        UsageError: the shell is not supported.
    """
    if shell != "bash":
        raise UsageError(f"--completion {shell}: not supported; give bash")
    return SCRIPT


def candidates(line: str, config_name: str) -> list[str]:
    """Return the words that can complete the last one of a line.

    Args:
        line: the words after the program, up to the cursor.
        config_name: `train` or `evaluate`.
    """
    words = line.split()
    last = "" if not words or line[-1] == " " else words.pop()
    if last.startswith("-"):
        return [flag for flag in FLAGS if flag.startswith(last)]
    try:
        args = parse_arguments(words)
    except UsageError:
        return []
    given = [word for word in args.overrides if "=" in word]
    if config_name == "train" and not any(word.startswith("stage=") for word in given):
        given.append("stage=vqvae")  # else nothing composes; the other stages have most of its keys
    with search_path(args):
        loader: Any = GlobalHydra.instance().config_loader()
        plugin = BashCompletion(loader)
        try:
            found = plugin._query(config_name, " ".join([*given, last]) + ("" if last else " "))
        except Exception:  # an unfinished word may be invalid in many ways
            return []
    return [word for word in found if not word.startswith("hydra/help")]
