"""Words of the command line that several of these programs understand."""

import argparse
from collections.abc import Callable, Collection


def number_of(names: Collection[str]) -> Callable[[str], tuple[str, int]]:
    """Return a `type` for argparse that reads NAME=NUMBER: a known name, a whole number of at least 1."""

    def read(word: str) -> tuple[str, int]:
        name, _, number = word.partition("=")
        if name not in names or not number.isdecimal() or int(number) < 1:
            raise argparse.ArgumentTypeError(
                f"{word!r}: give NAME=NUMBER, the name one of {', '.join(names)}, the number at least 1"
            )
        return name, int(number)

    return read
