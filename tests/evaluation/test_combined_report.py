"""The command `glc report`: it decides by what the folders hold, and watches runs that train."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from glc.cli import main
from glc.evaluation import combined_report
from tests.evaluation.fake_run import write_run
from tests.evaluation.fake_training import rows_of, write_sweep, write_training, write_version
from tests.evaluation.test_report import Page


def report(*words: str | Path) -> Result:
    return CliRunner().invoke(main, ["report", *map(str, words)])


def sections(path: Path) -> list[str]:
    found = Page(path.read_text("utf-8"))
    return [value for tag, name, value in found.attributes if (tag, name) == ("section", "id")]


def test_training_runs_evaluations_and_both(tmp_path: Path) -> None:
    runs, out = write_sweep(tmp_path / "runs", (1.0, 2.0)), tmp_path / "new" / "report.html"
    evaluated = write_run(runs / "results" / "kodak")
    done = report(runs, "-o", out)
    assert done.exit_code == 0, done.output
    assert done.output == f"{out}: {out.stat().st_size / 1e6:.1f} MB\n"
    assert sections(out)[0] == "runs"
    assert sections(out)[-1] == "evaluations"
    assert "<title>Training: runs</title>" in out.read_text("utf-8")
    # Named as a RUN, the evaluation is on the page, and no longer in the list.
    assert report(runs, evaluated, "-o", out).exit_code == 0
    assert {"runs", "images", "plots", "bd-rate", "compare"} <= set(sections(out))
    assert "evaluations" not in sections(out)
    # The scripts of both: each file once, and the strict mode first.
    text = out.read_text("utf-8").split("<script>\n")[1]
    assert text.startswith('"use strict"')
    assert text.count("function divider") == 1
    assert report(evaluated, "-o", out).exit_code == 0
    assert sections(out)[0] == "summary"


def test_a_folder_of_evaluations_stands_for_all_of_them(tmp_path: Path) -> None:
    write_run(tmp_path / "results" / "a", "slim")
    write_run(tmp_path / "results" / "b", "wide")
    out = tmp_path / "report.html"
    assert report(tmp_path / "results", "-o", out).exit_code == 0
    assert {"slim", "wide"} <= set(Page(out.read_text("utf-8")).texts["td"])


def test_folders_that_hold_neither(tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    done = report(tmp_path, "-o", out)
    assert (done.exit_code, done.output.count("\n")) == (1, 1)
    assert "no evaluation (summary.json) and no training run (csv/version_0) in it; give" in done.output
    done = report(tmp_path / "gone", "-o", out)
    assert done.exit_code == 1
    assert "gone: does not exist; give the folder of a training run or an evaluation" in done.output
    assert not out.exists()


def test_tables_need_an_evaluation(tmp_path: Path) -> None:
    runs = write_sweep(tmp_path / "runs", (1.0,))
    done = report(runs, "-o", tmp_path / "report.html", "--tables", tmp_path / "tables")
    assert done.exit_code == 2
    assert "--tables needs an evaluation; give its out= folder as a RUN" in done.output
    assert not (tmp_path / "report.html").exists()


def test_watch_needs_a_training_run(tmp_path: Path) -> None:
    done = report(write_run(tmp_path / "a"), "-o", tmp_path / "report.html", "--watch")
    assert done.exit_code == 2
    assert "--watch needs a folder with training runs" in done.output


def watched(monkeypatch: pytest.MonkeyPatch, *during: Callable[[], object]) -> None:
    """Replace the pauses of --watch by calls, and end it by Ctrl-C after the last one."""
    calls = iter(during)

    def sleep(seconds: float) -> None:
        assert seconds >= 0.5
        call = next(calls, None)
        if call is None:
            raise KeyboardInterrupt
        call()

    monkeypatch.setattr(combined_report.time, "sleep", sleep)
    assert time.sleep is sleep


def test_watch_rewrites_the_page_when_a_run_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs, out = write_sweep(tmp_path / "runs", (1.0,)), tmp_path / "report.html"
    pages: list[str] = []
    see = lambda: pages.append(out.read_text("utf-8"))  # noqa: E731
    watched(
        monkeypatch,
        see,
        out.unlink,  # nothing has changed: not written again
        lambda: pages.append(str(out.exists())),
        lambda: write_training(runs / "transform" / "stage.lmbda-9"),
        see,
        lambda: write_version(runs / "transform" / "stage.lmbda-9", rows_of(120), None, version=1),
        see,
    )
    done = report(runs, "-o", out, "--watch", "--every", "0.5")
    assert done.exit_code == 0, done.output
    assert pages[1] == "False"
    assert ["stage.lmbda-9" in page for page in pages[::2]] == [False, True]
    assert all('data-reload="0.5"' in page for page in (pages[0], pages[2], pages[3]))
    assert "120 / 100" not in pages[3]
    assert ">120<" in pages[3]
    # The last page stays as it is.
    assert "data-reload=" not in out.read_text("utf-8").split("<script")[0]


def test_watch_goes_on_after_a_failed_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs, out = write_sweep(tmp_path / "runs", (1.0,)), tmp_path / "pages" / "report.html"
    other = tmp_path / "elsewhere"

    def block() -> None:
        out.parent.rename(other)
        out.parent.touch()  # a file where the folder was
        write_training(runs / "transform" / "stage.lmbda-9")

    watched(monkeypatch, block, lambda: out.parent.unlink())
    done = report(runs, "-o", out, "--watch", "--every", "0.5")
    assert done.exit_code == 0, done.output
    assert "report.html: not written: " in done.output
    assert "stage.lmbda-9" in out.read_text("utf-8")
