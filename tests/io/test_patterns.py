"""Expansion of braces in names of shards."""

import pytest

from glc.io.patterns import expand_braces


def test_ranges_and_alternatives_are_expanded() -> None:
    assert expand_braces("in-{000..002}.tar") == ["in-000.tar", "in-001.tar", "in-002.tar"]
    assert expand_braces("{b,a}/0.tar") == ["b/0.tar", "a/0.tar"]
    assert expand_braces("https://host/in-{0..1}.tar") == ["https://host/in-0.tar", "https://host/in-1.tar"]
    assert expand_braces("plain.tar") == ["plain.tar"]


def test_backslashes_of_windows_paths_are_kept() -> None:
    assert expand_braces(r"data\in.tar", separator="\\") == [r"data\in.tar"]
    assert expand_braces(r"data\in-{0..1}.tar", separator="\\") == [r"data\in-0.tar", r"data\in-1.tar"]


def test_a_backslash_escapes_a_brace_elsewhere() -> None:
    assert expand_braces(r"in-\{0\}.tar", separator="/") == ["in-{0}.tar"]


def test_unbalanced_braces_are_refused() -> None:
    with pytest.raises(ValueError, match="alanced"):
        expand_braces("in-{0.tar")
