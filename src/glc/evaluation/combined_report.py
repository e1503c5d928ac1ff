"""The file of `glc report`: evaluations, training runs, or both, by what the folders hold."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from glc.evaluation import report, training_report
from glc.evaluation.results import SUMMARY, Results, ResultsError, read_runs
from glc.evaluation.training_report import training_sections, training_side
from glc.evaluation.training_runs import find_evaluations, find_runs, read_training_runs
from glc.evaluation.web_page import web_page
from glc.io.atomic import write_text


class Report:
    """A report of the folders that a user names.

    A folder with `summary.json` is an evaluation. A folder with training runs is searched at each `write`;
    the evaluations in it are listed. A folder that has evaluations only stands for all of them.

    Args:
        folders: at least one.
        output: HTML file.
        originals: as in `report.build_report`, and so are `images`, `published` and `anchor`.

    Raises:
        ResultsError: a folder has neither, or an evaluation cannot be used.
    """

    def __init__(
        self,
        folders: Sequence[Path],
        output: Path,
        originals: Path | None = None,
        images: int = 8,
        published: bool = True,
        anchor: str | None = None,
    ) -> None:
        self.output = output
        self.training: list[Path] = []
        """Folders that are searched for training runs."""
        evaluated: list[Path] = []
        for folder in folders:
            if (folder / SUMMARY).is_file():
                evaluated.append(folder)
            elif not folder.is_dir() or find_runs(folder):
                self.training.append(folder)
            else:
                evaluated += find_evaluations(folder) or [_refused(folder)]
        self.evaluations: list[Results] = read_runs(evaluated)
        self._evaluated = {path.resolve() for path in evaluated}
        self._sections = (
            report.evaluation_sections(self.evaluations, originals, images, published, anchor)
            if self.evaluations
            else []
        )

    def write(self, reload_seconds: float | None = None) -> int:
        """Write the page as it is now, atomically; return its size in bytes.

        Args:
            reload_seconds: period at which the page reloads itself; None for never.
        """
        if not self.training:
            name = self.evaluations[0].data_name
            page = web_page(f"Evaluation on {name}", self._sections, report.SCRIPTS)
        else:
            runs = read_training_runs(self.training)
            listed = [path for folder in self.training for path in find_evaluations(folder)]
            listed = [path for path in dict.fromkeys(listed) if path.resolve() not in self._evaluated]
            scripts = [*training_report.SCRIPTS, *(report.SCRIPTS if self._sections else ())]
            names = ", ".join(dict.fromkeys(folder.resolve().name for folder in self.training))
            page = web_page(
                f"Training: {names}",
                [*training_sections(runs, listed, self.output), *self._sections],
                list(dict.fromkeys(scripts)),
                side=training_side(runs),
                reload_seconds=reload_seconds,
            )
        write_text(self.output, page)
        return len(page.encode("utf-8", "surrogateescape"))

    def watch(self, seconds: float, tell: Callable[[str], None]) -> NoReturn:
        """Write the page again whenever a run has changed, without end.

        Args:
            seconds: period; longer where writing takes more than a tenth of it, to leave training its cores.
            tell: called with what prevents a write; the next period tries again.
        """
        state = self._changes()
        took = 0.0
        while True:
            time.sleep(max(seconds, 9 * took))
            started = time.monotonic()
            now = self._changes()
            if now == state:
                continue
            try:
                self.write(seconds)
            except (ResultsError, OSError) as error:  # such as a full disk, or a folder that is moved
                tell(f"{self.output}: not written: {error}")
            else:
                state = now
            took = time.monotonic() - started

    def _changes(self) -> dict[Path, tuple[int, int]]:
        """Return time and size of the files that the page shows."""
        found = {}
        for folder in self.training:
            for run in find_runs(folder):
                for path in [*run.glob("csv/version_*/*"), run / "panels"]:
                    try:
                        about = path.stat()
                    except OSError:
                        continue
                    found[path] = (about.st_mtime_ns, about.st_size)
            found |= dict.fromkeys(find_evaluations(folder), (0, 0))
        return found


def _refused(folder: Path) -> NoReturn:
    raise ResultsError(
        f"{folder}: no evaluation (summary.json) and no training run (csv/version_0) in it; "
        "give the out= folder of an evaluation or a folder such as runs/NAME"
    )
