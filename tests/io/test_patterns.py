"""Expansion of braces in names of shards."""

import pytest

from glc.io.patterns import expand_braces


@pytest.mark.parametrize(
    ("pattern", "separator", "names"),
    [
        ("in-{000..002}.tar", "/", ["in-000.tar", "in-001.tar", "in-002.tar"]),
        ("{b,a}/0.tar", "/", ["b/0.tar", "a/0.tar"]),
        ("https://host/in-{0..1}.tar", "/", ["https://host/in-0.tar", "https://host/in-1.tar"]),
        ("plain.tar", "/", ["plain.tar"]),
        (r"in-\{0\}.tar", "/", ["in-{0}.tar"]),  # escaped
        (r"data\in-{0..1}.tar", "\\", [r"data\in-0.tar", r"data\in-1.tar"]),  # a path of Windows
        (r"data\in.tar", "\\", [r"data\in.tar"]),
    ],
)
def test_ranges_and_alternatives_are_expanded(pattern: str, separator: str, names: list[str]) -> None:
    assert expand_braces(pattern, separator=separator) == names


def test_unbalanced_braces_are_refused() -> None:
    with pytest.raises(ValueError, match="alanced"):
        expand_braces("in-{0.tar")
