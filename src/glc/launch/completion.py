"""Completion of overrides in bash, zsh and fish: groups, choices and keys."""

from typing import Any

from hydra._internal.core_plugins.bash_completion import BashCompletion
from hydra.core.global_hydra import GlobalHydra

from glc.launch.config import UsageError
from glc.launch.overrides import parse_arguments, search_path

FLAGS = ("--cfg", "--completion", "--config-dir", "--config-name", "--help", "--hydra-help", "--multirun")

# Bash splits words at `=`, and replaces only what follows it.
_BASH = r"""_glc_complete() {
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
_ZSH = r"""_glc_complete() {
    local -a found
    local last=0
    if [[ ${words[1]:t} == glc && ${words[2]} == (train|eval) ]]; then
        last=2
    elif [[ ${words[1]:t} == python* && ${words[2]} == -m && ${words[3]} == src.(train|evaluate) ]]; then
        last=3
    fi
    if (( last == 0 || CURRENT <= last )); then
        _default
        return
    fi
    local line="${(j: :)words[last+1,CURRENT-1]} $PREFIX"
    found=(${(f)"$("${(@)words[1,last]}" --complete "$line" 2>/dev/null)"})
    if (( $#found == 1 )) && [[ ${found[1]} != *[=./] ]]; then
        compadd -- $found
    else
        compadd -S '' -- $found
    fi
    (( $compstate[nmatches] )) || _files
}
(( $+functions[compdef] )) || { autoload -Uz compinit && compinit }
compdef _glc_complete glc python python3
"""
_FISH = r"""function __glc_complete
    set -l words (commandline -opc)
    set -l last 0
    if string match -qr "(^|/)glc\$" -- $words[1]; and contains -- "$words[2]" train eval
        set last 2
    else if test "$words[2]" = -m; and contains -- "$words[3]" src.train src.evaluate
        set last 3
    end
    test $last -gt 0; or return
    $words[1..$last] --complete (string join ' ' -- $words[(math $last + 1)..] (commandline -ct)) 2>/dev/null
end
complete -c glc -a '(__glc_complete)'
complete -c python -a '(__glc_complete)'
complete -c python3 -a '(__glc_complete)'
"""
SCRIPTS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}
"""The functions for completion by shell."""


def script(shell: str) -> str:
    """Return the text to `eval` in a shell.

    Raises:
        UsageError: the shell is not supported.
    """
    if shell not in SCRIPTS:
        raise UsageError(f"--completion {shell}: not supported; give {', '.join(SCRIPTS)}")
    return SCRIPTS[shell]


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
