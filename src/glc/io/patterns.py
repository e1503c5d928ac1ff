"""Brace patterns in file names, such as `train-{000..099}.tar`."""

import os

from braceexpand import braceexpand


def expand_braces(pattern: str, separator: str = os.sep) -> list[str]:
    """Return the names that a pattern stands for; a pattern without braces stands for itself.

    Args:
        pattern: a path or URL, with `{a,b}` or `{000..099}` anywhere.
        separator: of paths. Where it is a backslash (Windows), a backslash does not escape a brace:
            braceexpand would remove it from the path.

    Raises:
        ValueError: the braces are not balanced.
    """
    return list(braceexpand(pattern, escape=separator != "\\"))
