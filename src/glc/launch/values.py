"""Types of values on the command line and in yaml files: what is accepted, and how it is described."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_TRUE = ("true", "yes", "on", "y", "1")
WORDS = (*_TRUE, "false", "no", "off", "n", "0")
"""The words for true and false."""


@dataclass(frozen=True)
class Accepted:
    """The values that a key accepts."""

    text: str
    """Description for messages, such as "an integer of at least 1"."""
    convert: Callable[[Any], Any]
    """Returns the value in the type that the program uses.

    Raises:
        ValueError, TypeError: the value is not accepted.
    """
    fix: str = ""
    """What to do instead, added to the message."""


def _boolean(value: Any) -> bool:
    word = str(value).lower()
    if word not in WORDS:
        raise ValueError
    return word in _TRUE


def _number(value: Any) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise TypeError
    return value if isinstance(value, int) else float(value)


def _integer(value: Any) -> int:
    if isinstance(value, str) and value.strip("+-").isdecimal():
        return int(value)
    number = _number(value)
    if number != int(number):
        raise ValueError
    return int(number)


def _within(low: float, high: float | None, above: bool) -> tuple[str, Callable[[float], bool]]:
    lower = f" above {low:g}" if above else f" of at least {low:g}"
    if high is not None:
        lower = f" above {low:g} and at most {high:g}" if above else f" from {low:g} to {high:g}"
    return lower, lambda n: (n > low if above else n >= low) and (high is None or n <= high)


def integer(low: int, high: int | None = None) -> Accepted:
    """Return a type: an integer in a range."""
    text, fits = _within(low, high, above=False)
    return Accepted(f"an integer{text}", _restricted(_integer, fits))


def number(low: float, high: float | None = None, above: bool = False) -> Accepted:
    """Return a type: a finite number in a range; `above`: without `low`."""
    text, fits = _within(low, high, above)
    return Accepted(f"a number{text}", _restricted(_number, lambda n: fits(n) and abs(n) < float("inf")))


def _restricted(convert: Callable[[Any], Any], fits: Callable[[Any], bool]) -> Callable[[Any], Any]:
    def restricted(value: Any) -> Any:
        converted = convert(value)
        if not fits(converted):
            raise ValueError
        return converted

    return restricted


def choice(*names: str) -> Accepted:
    """Return a type: one of several words."""

    def convert(value: Any) -> str:
        return names[[name.lower() for name in names].index(str(value).lower())]

    return Accepted(" or ".join([", ".join(names[:-1]), names[-1]]) if names[1:] else names[0], convert)


def one_of(first: Accepted, second: Accepted) -> Accepted:
    """Return a type: the values of either of two."""

    def convert(value: Any) -> Any:
        try:
            return first.convert(value)
        except (ValueError, TypeError):
            return second.convert(value)

    return Accepted(f"{first.text}, or {second.text}", convert)


def sequence(item: Accepted, length: int | None = None, text: str = "") -> Accepted:
    """Return a type: a list, of a fixed length if one is given."""

    def convert(value: Any) -> list[Any]:
        if not isinstance(value, Sequence) or isinstance(value, str) or length not in (None, len(value)):
            raise TypeError
        return [item.convert(entry) for entry in value]

    return Accepted(text or f"a list such as [A,B], each {item.text}", convert)


def _built(value: Any) -> Any:
    if not isinstance(value, Mapping) or "_target_" not in value:
        raise TypeError
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str | int | float) or isinstance(value, bool) or not str(value):
        raise TypeError
    return str(value)


def _phase(value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping) or value.keys() != {"from_step", "sizes"}:
        raise TypeError
    sizes = {COUNT.convert(side): POSITIVE.convert(chance) for side, chance in value["sizes"].items()}
    return {"from_step": INDEX.convert(value["from_step"]), "sizes": sizes}


def _null(value: Any) -> None:
    if value is not None and str(value).lower() not in ("null", "none"):
        raise ValueError


def _batches(value: Any) -> int | float:
    converted = _number(int(value) if str(value).isdecimal() else value)
    if not 0 <= converted <= (1 if isinstance(converted, float) else float("inf")):
        raise ValueError
    return converted


def _devices(value: Any) -> int | str | list[int]:
    if value == "auto":
        return value
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [INDEX.convert(entry) for entry in value]
    if isinstance(value, str) and "," in value:
        return [INDEX.convert(entry) for entry in value.split(",")]
    count = _integer(value)
    if count < -1 or count == 0:
        raise ValueError
    return count


BOOLEAN = Accepted("true or false (or yes, no, on, off)", _boolean)
COUNT, INDEX = integer(1), integer(0)
NUMBER = Accepted("a number", _restricted(_number, lambda n: abs(n) < float("inf")))
WEIGHT, POSITIVE, SHARE = number(0), number(0, above=True), number(0, 1)
TEXT = Accepted("a word or a path", _text)
NULL = Accepted("null", _null)
NAMES = one_of(TEXT, sequence(TEXT, text="a list of them"))
SOURCES = one_of(TEXT, sequence(one_of(TEXT, Accepted("a mapping with _target_", _built))))
LIST = sequence(Accepted("anything", lambda value: value), text="a list")
SCHEDULE = sequence(
    Accepted("a phase", _phase),
    text="a schedule [{from_step:0,sizes:{256:0.5,512:0.5}},...] of sizes and their probabilities",
)
RANGE = one_of(WEIGHT, sequence(WEIGHT, 2, "a list of two, [LOW,HIGH]"))
BATCHES = Accepted("a number of batches, or a share from 0.0 to 1.0", _batches)
DEVICES = Accepted("a number of devices, a list such as [0,1], -1 for all, or auto", _devices)


def optional(kind: Accepted) -> Accepted:
    """Return a type with null as a further value."""
    return one_of(kind, NULL)


def shown(value: Any) -> str:
    """Return a value as it is written in an override."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return f"[{','.join(map(shown, value))}]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{shown(entry)}" for key, entry in value.items()) + "}"
    return str(value)
