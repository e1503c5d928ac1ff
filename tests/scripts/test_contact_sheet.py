"""scripts/contact_sheet.py: the codecs shown beside an original."""

import sys
from pathlib import Path

import pytest
from PIL import Image

from glc.evaluation.results import read_runs
from tests.evaluation.fake_run import IMAGES, at_rates, write_originals, write_run
from tests.programs import load_script


def test_other_codecs_are_shown_at_the_nearest_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = load_script("contact_sheet")
    folders = [write_run(tmp_path / "ours", "ours"), write_run(tmp_path / "other", "other", at_rates(2))]
    ours, other = read_runs(folders)
    chosen = script.choose(ours, [other], IMAGES[0], ["q1", "q3"])
    # The other codec has 0.04, 0.06, 0.1 and 0.16 bpp: 0.1 is the nearest to 0.08 in log rate.
    assert [(run.name, row.label) for run, row in chosen] == [("ours", "q1"), ("ours", "q3"), ("other", "q2")]
    with pytest.raises(ValueError, match="no rate point q9"):
        script.choose(ours, [other], IMAGES[0], ["q9"])
    write_originals(tmp_path / "originals")
    words = ["contact_sheet", "--ours", str(folders[0]), "--others", str(folders[1]), "--originals"]
    monkeypatch.setattr(sys, "argv", [*words, str(tmp_path / "originals"), "-o", str(tmp_path / "sheet.jpg")])
    assert script.main() == 0
    with Image.open(tmp_path / "sheet.jpg") as sheet:
        assert sheet.width == 4 * script.SIDE * script.DPI
    monkeypatch.setattr(sys, "argv", [*words, str(tmp_path / "none"), "-o", str(tmp_path / "sheet.jpg")])
    (tmp_path / "none").mkdir()
    assert script.main() == 2
    assert "contains none of the images" in capsys.readouterr().err
