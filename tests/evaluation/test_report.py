"""The page: complete in itself, safe with any text, and about the very images of the runs."""

import base64
import io
import json
import sys
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import glc.evaluation
from glc.cli import main
from glc.evaluation.report import at_equal_rate, build_report, worst, write_tables
from glc.evaluation.results import Results, ResultsError, read_results
from tests.evaluation.fake_run import IMAGES, SIZE, at_rates, write_originals, write_run

VOID = {"meta", "img", "input", "br", "link"}


class Page(HTMLParser):
    """Parses a page strictly: elements close in order, and all that it names is kept."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: dict[str, list[str]] = {}
        self.scripts: dict[str, str] = {}
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag in VOID:
            return
        self.open.append(tag)
        if tag == "script":
            self.current = dict(attrs).get("id") or ""

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] == ["script"]:
            self.scripts[self.current] = self.scripts.get(self.current, "") + data
        elif self.open:
            self.texts.setdefault(self.open[-1], []).append(data)

    def slider(self) -> Any:
        return json.loads(self.scripts["slider-data"])


def decode(address: str) -> np.ndarray:
    kind, _, content = address.partition(",")
    assert kind == "data:image/webp;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content))).convert("RGB")).astype(int)


def close(image: np.ndarray, colour: Sequence[int]) -> bool:
    return bool(np.abs(image.mean((0, 1)) - colour).max() < 4)


def runs_of(tmp_path: Path) -> list[Results]:
    return [
        read_results(write_run(tmp_path / "a", "slim", colour=(200, 40, 40))),
        read_results(write_run(tmp_path / "b", "wide", at_rates(1.1), colour=(20, 140, 40))),
    ]


def test_the_page_is_complete(tmp_path: Path) -> None:
    text = build_report(runs_of(tmp_path))
    page = Page(text)
    assert page.texts["title"] == ["Evaluation on kodak"]
    assert {"slim", "GLC (published)", "+10.0"} <= set(page.texts["td"])
    assert "GLC (published)" not in build_report(runs_of(tmp_path), with_published=False)
    assert sum(tag == "svg" for tag, name, _ in page.attributes if name == "viewbox") == 3
    # Links within the page lead somewhere.
    ids = {value for _, name, value in page.attributes if name == "id"}
    targets = {value[1:] for tag, name, value in page.attributes if tag == "a" and name == "href"}
    assert targets
    assert targets <= ids


def test_nothing_is_loaded_from_elsewhere(tmp_path: Path) -> None:
    page = Page(build_report(runs_of(tmp_path), write_originals(tmp_path / "originals")))
    loading = ("src", "href", "xlink:href", "srcset", "data", "poster", "action", "background")
    seen = set()
    for _, name, value in page.attributes:
        if name in loading:
            assert value.startswith(("#", "data:image/webp;base64,"))
            seen.add(value[:1])
        elif not name.startswith("xmlns"):
            assert "//" not in value
        # SVG refers to its own parts so.
        assert value.count("url(") == value.count("url(#")
    assert seen == {"#", "d"}
    assert not {"link", "iframe", "object", "embed", "base"} & {tag for tag, _, _ in page.attributes}
    assert not [text for text in page.texts["style"] if "@import" in text or "url(" in text]
    assert not [word for word in ("fetch(", "XMLHttp", "import(", "//") if word in page.scripts[""]]
    policy = [value for tag, name, value in page.attributes if tag == "meta" and name == "content"][-1]
    assert policy.startswith("default-src 'none'")


@pytest.mark.parametrize("bad", ['<img src="x">', "</script><b>", "a & b", '" onload="x'])
def test_text_is_escaped(tmp_path: Path, bad: str) -> None:
    about = {"failed": [{"image": bad, "reason": bad}], "unavailable": {"fid": bad}, "protocol": {bad: bad}}
    folder = write_run(tmp_path / "a", name=bad, data="folder", **about)
    page = Page(build_report([read_results(folder)]))
    plain = Page(build_report([read_results(write_run(tmp_path / "b", data="folder"))]))
    assert {tag for tag, _, _ in page.attributes} <= {tag for tag, _, _ in plain.attributes}
    assert "onload" not in {name for _, name, _ in page.attributes}
    assert bad in page.texts["h3"]
    assert page.slider()["codecs"] == [bad]


def test_slider_holds_the_images_of_the_runs(tmp_path: Path) -> None:
    found = Page(build_report(runs_of(tmp_path), write_originals(tmp_path / "originals"))).slider()
    assert found["codecs"] == ["slim", "wide", "original"]
    assert [image["name"] for image in found["images"]] == list(IMAGES)
    for i, image in enumerate(found["images"]):
        assert (image["width"], image["height"]) == SIZE
        slim, wide, original = image["entries"]
        k = int(slim["caption"].split(", q")[1][0])
        assert close(decode(slim["data"]), (200 + 8 * k, 40 + 8 * i, 40))
        assert close(decode(wide["data"]), (20 + 8 * k, 140 + 8 * i, 40))
        assert close(decode(original["data"]), (10, 20, 230))
        assert wide["bpp"] / slim["bpp"] == pytest.approx(1.1)
        assert f"{slim['bpp']:.4f} bpp" in slim["caption"]
    # Originals of another size are not shown.
    large = write_originals(tmp_path / "large", size=(64, 64))
    assert Page(build_report(runs_of(tmp_path), large)).slider()["codecs"] == ["slim", "wide"]


def test_settings_nearest_in_rate_are_compared(tmp_path: Path) -> None:
    # Only 0.05 of the first has a near neighbour, 0.049, in the second.
    first = read_results(write_run(tmp_path / "a", "a"))
    other = [{"bpp": 0.001, "psnr": 1.0}, {"bpp": 0.049, "psnr": 2.0}]
    second = read_results(write_run(tmp_path / "b", "b", other))
    for choice in at_equal_rate([first, second], 8):
        assert [row.bpp for row in choice.rows if row] == [0.05, 0.049]


def test_images_that_one_run_lacks(tmp_path: Path) -> None:
    names = {"a": IMAGES, "b": IMAGES[1:], "c": IMAGES[2:]}
    runs = [read_results(write_run(tmp_path / name, name, images=names[name])) for name in names]
    choices = at_equal_rate(runs, 8)
    assert [choice.image for choice in choices] == ["market", "snow"]
    assert choices[0].rows[2] is None
    page = Page(build_report(runs))
    assert page.slider()["images"][0]["entries"][2] is None
    assert any("different numbers of images" in text for text in page.texts["p"])


def test_the_number_of_images_is_bounded_and_spread(tmp_path: Path) -> None:
    names = [f"p{i}" for i in range(9)]
    run = read_results(write_run(tmp_path / "a", images=names))
    assert [choice.image for choice in at_equal_rate([run], 3)] == ["p0", "p4", "p8"]
    assert [choice.image for choice in at_equal_rate([run], 1)] == ["p0"]


def test_worst_images_by_lpips(tmp_path: Path) -> None:
    names = [f"p{i}" for i in range(7)]
    run = read_results(write_run(tmp_path / "a", images=names))
    name, rows = worst(run)
    assert name == "lpips"
    assert [(row.image, row.label) for row in rows] == [(f"p{i}", "q0") for i in (6, 5, 4, 3, 2)]
    page = Page(build_report([run], write_originals(tmp_path / "originals", names)))
    images = [value for tag, name, value in page.attributes if tag == "img" and value.startswith("data:")]
    assert len(images) == 2 * 5
    assert close(decode(images[0]), (10, 20, 230))
    assert close(decode(images[1]), (200, 40 + 8 * 6, 40))
    assert page.texts["figcaption"][0].startswith("p6: glc, q0: 0.0200 bpp")


def test_without_lpips_another_metric_selects_the_worst(tmp_path: Path) -> None:
    curve = [{"bpp": 0.1, "psnr": 20.0}, {"bpp": 0.2, "psnr": 30.0}]
    name, rows = worst(read_results(write_run(tmp_path / "a", curve=curve)))
    assert name == "psnr"
    assert {row.label for row in rows} == {"q0"}
    none = read_results(write_run(tmp_path / "b", curve=[{"bpp": 0.1, "fid": 20.0}]))
    assert worst(none) == ("", [])


def test_failures_are_named(tmp_path: Path) -> None:
    failed = [{"image": "fog", "reason": "truncated"}, {"image": "x", "reason": "y", "label": "q1"}]
    page = Page(build_report([read_results(write_run(tmp_path / "a", failed=failed))]))
    assert {"fog: truncated", "x at q1: y"} <= set(page.texts["li"])
    assert "glc: 2 of 3 images failed." in page.texts["p"]


def test_refuses_runs_on_different_sets(tmp_path: Path) -> None:
    runs = [read_results(write_run(tmp_path / name, data=name)) for name in ("kodak", "div2k")]
    with pytest.raises(ResultsError, match="one report per set"):
        build_report(runs)
    with pytest.raises(ResultsError, match="at least one"):
        build_report([])


def test_the_anchor(tmp_path: Path) -> None:
    runs = runs_of(tmp_path)
    assert "−9.1" in build_report(runs, anchor="wide")
    with pytest.raises(ResultsError, match="unknown anchor 'fat'; choose one of slim, wide"):
        build_report(runs, anchor="fat")


def test_missing_and_broken_images_are_named(tmp_path: Path) -> None:
    run = read_results(write_run(tmp_path / "a"))
    path = run.reconstruction(run.rows[0])
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(ResultsError, match=f"{path.name}: not a readable image"):
        build_report([run])
    path.unlink()
    with pytest.raises(ResultsError, match=f"{path.name}: does not exist"):
        build_report([run])


def test_tables_as_files(tmp_path: Path) -> None:
    written = {path.name: path for path in write_tables(runs_of(tmp_path), tmp_path / "tables")}
    plots = {f"rd_{name}.{suffix}" for name in ("psnr", "ms_ssim", "lpips") for suffix in ("png", "svg")}
    assert written.keys() == plots | {"points.md", "points.tex", "bd_rate.md", "bd_rate.tex"}
    assert "| wide | +10.0 | +10.0 | +10.0 |" in written["bd_rate.md"].read_text()


def test_command(tmp_path: Path) -> None:
    folders = [str(write_run(tmp_path / "a", "a")), str(write_run(tmp_path / "b", "b", at_rates(2)))]
    out = tmp_path / "new" / "report.html"
    done = CliRunner().invoke(main, ["report", *folders, "-o", str(out), "--images", "2", "--anchor", "b"])
    assert done.exit_code == 0, done.output
    assert len(Page(out.read_text("utf-8")).slider()["images"]) == 2
    assert "−50.0" in out.read_text("utf-8")


def test_command_fails_with_one_line_and_writes_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    folders = [str(write_run(tmp_path / "a")), str(tmp_path / "empty")]
    out = tmp_path / "report.html"
    done = CliRunner().invoke(main, ["report", *folders, "-o", str(out), "--tables", str(tmp_path / "t")])
    assert done.exit_code == 1
    assert "empty: no evaluation (summary.json) and no training run (csv/version_0) in it" in done.output
    assert not out.exists()
    assert not (tmp_path / "t").exists()


@pytest.mark.parametrize("command", ["report", "complexity"])
def test_a_missing_package_is_named_with_the_fix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    # Put back at the end, as the modules are.
    monkeypatch.setattr(glc, "evaluation", glc.evaluation)
    for name in list(sys.modules):
        if name.startswith(("glc.evaluation", "bjontegaard")):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Missing(), *sys.meta_path])
    done = CliRunner().invoke(main, [command, str(tmp_path)])
    assert done.exit_code == 2
    assert "bjontegaard: package not installed; run pip install 'glc-codec[eval]'" in done.output


class Missing:
    """Lets a package look as if it were not installed."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name.split(".")[0] == "bjontegaard":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
