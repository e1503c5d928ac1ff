"""The page of training runs: complete in itself, safe with any text, bounded in size."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from glc.evaluation import training_report
from glc.evaluation.training_report import SCRIPTS, training_sections, training_side
from glc.evaluation.training_runs import TrainingRun, read_training_runs
from glc.evaluation.web_page import web_page
from tests.evaluation.fake_run import write_run
from tests.evaluation.fake_training import (
    config,
    rows_of,
    write_panels,
    write_sweep,
    write_training,
    write_version,
)
from tests.evaluation.test_report import Page, close, decode


def page_of(runs: list[TrainingRun], **options: Any) -> str:
    return web_page("Training: x", training_sections(runs, **options), SCRIPTS, training_side(runs))


def page(folder: Path, **options: Any) -> Page:
    return Page(page_of(read_training_runs([folder]), **options))


def data(found: Page) -> Any:
    return json.loads(found.scripts["training-data"])


def test_the_page_has_all_sections_of_a_sweep(tmp_path: Path) -> None:
    found = page(write_sweep(tmp_path))
    ids = [value for tag, name, value in found.attributes if (tag, name) == ("section", "id")]
    assert ids == [
        "runs",
        "rate-distortion",
        "images",
        "curves-validation",
        "curves-losses",
        "curves-codebooks",
        "usage",
        "curves-optimisation",
    ]
    targets = [value for tag, name, value in found.attributes if (tag, name) == ("a", "href")]
    assert [value[1:] for value in targets if value[0] == "#"] == ids
    store = data(found)
    assert [run["short"] for run in store["runs"]] == [f"stage.lmbda-{k}" for k in (1, 2, 4)]
    assert store["series"]["val/psnr/1"]["2"][1] == [21.0, 23.0]
    assert {"stage.lmbda", "PSNR (dB) ↑", "val/loss"} <= set(found.texts["button"])
    assert {"4.0", "22.50", "100 / 100"} <= set(found.texts["td"])


def test_nothing_is_loaded_from_elsewhere(tmp_path: Path) -> None:
    found = page(write_sweep(tmp_path))
    for tag, name, value in found.attributes:
        assert name not in ("srcset", "data", "poster", "action", "background")
        if name == "src":
            assert value.startswith("data:image/webp;base64,")
        elif name == "href":
            assert tag == "a"
    assert not {"link", "iframe", "object", "embed", "base"} & {tag for tag, _, _ in found.attributes}
    assert not [word for word in ("fetch(", "XMLHttp", "import(", "//", "eval(") if word in found.scripts[""]]
    assert "url(" not in "".join(found.texts["style"])


@pytest.mark.parametrize(
    "bad", ["<img src=x onerror=alert(1)>", "a & b", "quote\"' onload=x", "<!--<script>"]
)
def test_text_is_escaped(tmp_path: Path, bad: str) -> None:
    closing = "</script><b>"
    for name, value in ((bad, bad), ("b", closing)):
        write_training(tmp_path / name, stage=f"{closing}{bad}", stage__note=value, **{bad: closing})
    plain = tmp_path / "plain"
    write_training(plain / "a", stage="x", note=1)
    write_training(plain / "b", stage="x", note=2)
    tags = {tag for tag, _, _ in page(plain).attributes}
    found = page_of([run for run in read_training_runs([tmp_path]) if "plain" not in run.name])
    parsed = Page(found)
    assert {tag for tag, _, _ in parsed.attributes} <= tags
    assert not {"onload", "onerror"} & {name for _, name, _ in parsed.attributes}
    assert bad in [run["name"] for run in data(parsed)["runs"]]
    assert {bad, closing} <= set(parsed.texts["td"])


def test_originals_are_embedded_once_and_captions_have_the_values(tmp_path: Path) -> None:
    store = data(page(write_sweep(tmp_path, (1.0, 2.0))))
    # Two images: their originals, and two rate points before and after training, equal in both runs.
    assert len(store["images"]) == 2 * (1 + 2 * 2)
    panels = [panel for panel in store["panels"] if (panel["run"], panel["image"]) == (1, 0)]
    assert [panel["step"] for panel in panels] == [0, 100]
    original, low, high = panels[1]["columns"]
    assert (original["title"], low["title"], high["title"]) == ("original", "rate point 0", "rate point 1")
    assert close(decode(store["images"][high["image"]]), (100, 40, 200))
    assert low["caption"].startswith("rate point 0 (validation means: 0.0200 bpp, 22.00 dB")
    assert "20.00 dB" in panels[0]["columns"][1]["caption"]


def test_images_are_bounded_and_the_last_ones_come_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = np.random.default_rng(0)
    for name in ("a", "b"):
        write_version(tmp_path / name, rows_of(), config(tmp_path / name))
        write_panels(tmp_path / name, steps=range(0, 100, 10), images=3)
        for path in (tmp_path / name / "panels").iterdir():
            noise = random.integers(0, 256, (32, 96, 3), dtype=np.uint8)
            Image.fromarray(noise).save(path)
    complete = data(page(tmp_path))
    assert len(complete["panels"]) == 2 * 3 * 10
    size = sum(map(len, complete["images"]))
    monkeypatch.setattr(training_report, "IMAGE_BYTES", size // 6)
    found = page(tmp_path)
    kept = [(panel["run"], panel["image"], panel["step"]) for panel in data(found)["panels"]]
    assert len(kept) in (9, 10, 11)
    last = [(run, image, 90) for run in (0, 1) for image in (0, 1, 2)]
    assert set(last) <= set(kept)
    assert {(0, 0, 0), (1, 0, 0)} <= set(kept)  # then the first ones of the first image
    assert any("50 more panels" in text or "more panels are in" in text for text in found.texts["p"])


def test_a_page_of_long_runs_is_below_five_megabytes(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    names = [f"train/term{k}" for k in range(60)]
    for i in range(3):
        path = write_version(tmp_path / str(i), [{"step": 0, **dict.fromkeys(names, 1.0)}], config(tmp_path))
        # 1500 rows with all values, each of which a real run would log.
        rows = random.random((1500, len(names)))
        order = ["step", *sorted(names)]
        assert path.read_text().splitlines()[0].split(",") == order
        lines = (f"{10 * k}," + ",".join(f"{value:.8f}" for value in row) for k, row in enumerate(rows))
        path.write_text(",".join(order) + "\n" + "\n".join(lines) + "\n")
        write_panels(tmp_path / str(i), steps=range(0, 100, 10), images=4)
    text = page_of(read_training_runs([tmp_path]))
    assert 1e6 < len(text.encode()) < 5e6


def test_runs_that_lack_something_are_named(tmp_path: Path) -> None:
    write_version(tmp_path / "started", [], None)
    rows = [{"step": 0, "train/loss": 1.0}, {"step": 9, "train/loss": float("nan"), "train/l1": float("inf")}]
    write_version(tmp_path / "training", rows, config(tmp_path / "training"))
    found = page(tmp_path)
    assert [text for text in found.texts["p"] if ": " in text] == [
        "training: train/l1 and 1 more not finite, first at step 9.",
        "training: no validation yet.",
        "started: no configuration was found, so its settings are not compared.",
        "started: started, nothing is logged yet.",
    ]
    assert {"started", "10 / 100"} <= set(found.texts["td"])
    assert [run["done"] for run in data(found)["runs"]] == ["10 %", "started"]


def test_many_warnings_are_summed_up(tmp_path: Path) -> None:
    for i in range(30):
        write_version(tmp_path / str(i), [], config(tmp_path))
    warnings = [
        text for text in page(tmp_path).texts["p"] if "nothing is logged" in text or "more notes" in text
    ]
    assert len(warnings) == 8
    assert warnings[-1] == "and 23 more notes on other runs."


def test_runs_and_evaluations_are_linked_relative_to_the_page(tmp_path: Path) -> None:
    runs = tmp_path / "runs of mine"
    write_training(runs / "a #1")
    evaluated = write_run(runs / "results" / "kodak")
    broken = runs / "broken"
    broken.mkdir()
    (broken / "summary.json").write_text("{")
    output = tmp_path / "pages" / "report.html"
    found = page(runs, evaluations=[evaluated, broken], output=output)
    links = [
        value for tag, name, value in found.attributes if (tag, name) == ("a", "href") if value[0] != "#"
    ]
    assert links == [f"../runs%20of%20mine/{name}" for name in ("a%20%231", "results/kodak", "broken")]
    assert {"glc", "kodak", "4", "0.0200 to 0.0800"} <= set(found.texts["td"])
    assert any(text.startswith("cannot be read: ") and "summary.json" in text for text in found.texts["td"])
    (evaluated / "report.html").touch()
    found = page(runs, evaluations=[evaluated], output=output)
    assert any(value.endswith("results/kodak/report.html") for _, _, value in found.attributes)


def test_only_a_watched_page_reloads_itself(tmp_path: Path) -> None:
    write_training(tmp_path / "a")
    sections = training_sections(read_training_runs([tmp_path]))
    assert re.search(r"<body[^>]* data-reload=\"2.5\">", web_page("x", sections, SCRIPTS, "s", 2.5))
    assert "data-reload=" not in web_page("x", sections, SCRIPTS, "s").split("<script")[0]
