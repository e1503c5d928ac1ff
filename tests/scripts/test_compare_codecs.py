"""scripts/compare_codecs.py: the tables and the plot that it writes into a document."""

from pathlib import Path

import pytest

from glc.evaluation.results import read_results
from glc.evaluation.tables import PublishedCurve
from tests.evaluation.fake_run import at_rates, write_run
from tests.programs import load_script

script = load_script("compare_codecs")

DOCUMENT = "# Words\n\n<!-- comparison -->\nold\n<!-- end of comparison -->\n\nmore words\n"


def written(tmp_path: Path) -> str:
    write_run(tmp_path / "out" / "slim", "slim", at_rates(0.5))
    write_run(tmp_path / "out" / "vvc", "vvc")
    (tmp_path / "words.md").write_text(DOCUMENT)
    words = ["--codecs", "here/slim.safetensors,vvc", "--out", str(tmp_path / "out"), "--only-write"]
    assert script.main([*words, "--document", str(tmp_path / "words.md")]) == 0
    return (tmp_path / "words.md").read_text()


def test_tables_and_plot_replace_text_between_markers(tmp_path: Path) -> None:
    text = written(tmp_path)
    assert text.startswith("# Words\n\n<!-- comparison -->\n")
    assert text.endswith("<!-- end of comparison -->\n\nmore words\n")
    assert "old" not in text
    assert "| slim | −50.0 | −50.0 | −50.0 |" in text
    assert "| GLC (published) | – | – | 0.0247 |" in text
    plot = tmp_path / "images" / "rd_kodak.svg"
    assert "![rate and quality on kodak](images/rd_kodak.svg)" in text
    rendered = plot.read_text()
    assert {"LPIPS ↓", "PSNR (dB) ↑"} <= {part.split("<")[0] for part in rendered.split(">")}
    assert rendered.count(">vvc<") == 1  # one legend
    # The same results give the same bytes.
    assert written(tmp_path) == text
    assert plot.read_text() == rendered


def test_document_without_markers_is_unchanged(tmp_path: Path) -> None:
    for text in ("words", DOCUMENT + script.BEGIN, "<!-- end of comparison -->\n<!-- comparison -->"):
        (tmp_path / "words.md").write_text(text)
        with pytest.raises(ValueError, match=r"words.md: markers missing; put <!-- comparison -->"):
            script.main(["--codecs", "x", "--out", str(tmp_path), "--document", str(tmp_path / "words.md")])
        assert (tmp_path / "words.md").read_text() == text


def test_published_points_within_measured_rates_are_compared(tmp_path: Path) -> None:
    run = read_results(write_run(tmp_path / "vvc", "vvc"))
    points = [{"bpp": 0.01, "psnr": 1.0}, {"bpp": (0.02 * 0.03) ** 0.5, "psnr": 22.75}]
    entry = PublishedCurve("VTM (VVC)", "a paper", "file", points)
    (sentence,) = script.check_against_published([run], [entry])
    # Half way in log rate between 22 and 23 dB.
    assert "published 22.75 dB at 0.0245 bpp" in sentence
    assert "interpolated: 22.50 dB (-0.25 dB)" in sentence
    other = PublishedCurve("GLC", "a paper", "file", points)
    assert script.check_against_published([run], [other]) == []
