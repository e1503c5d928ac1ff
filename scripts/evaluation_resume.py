"""Kill an evaluation again and again, start it again, and compare its result files with an undisturbed run's.

    python scripts/evaluation_resume.py --pictures KODAK --count 6 --codecs jpeg,webp --kills 3

Three evaluations of the same pictures: undisturbed; killed (SIGKILL, with all its processes) at random pieces
of work and started again by the same command; and with two processes. `summary.json` and `per_image.csv` of
each codec must be equal byte for byte, but for the seconds. Metrics: PSNR and MS-SSIM, and with --weights-dir
LPIPS. Exits with 1 when a file differs, an evaluation fails, or a kill came too late to break anything off.
"""

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SECONDS = ("encode_seconds", "decode_seconds")
FILES = ("summary.json", "per_image.csv")
HANG = 1800


def without_seconds(name: str, content: bytes) -> bytes:
    """Return a result file without the columns and keys of seconds, everything else as it stands."""
    text = content.decode()
    if name.endswith(".json"):
        return re.sub(rf'"({"|".join(SECONDS)})": [-\d.e]+', r'"\1": 0', text).encode()
    # The seconds are the last columns, and numbers: what may be in quotes and have commas comes before.
    assert text.split()[0].split(",")[-2:] == list(SECONDS)
    return re.sub(r",[^,\r\n]*,[^,\r\n]*(?=\r?$)", "", text, flags=re.M).encode()


def differences(one: Path, other: Path, codecs: Sequence[str]) -> list[str]:
    """Return the result files in which two runs differ, as `CODEC/FILE`."""
    found = []
    for codec in codecs:
        for name in FILES:
            a, b = (without_seconds(name, (run / codec / name).read_bytes()) for run in (one, other))
            if a != b:
                found.append(f"{codec}/{name}")
    return found


def pieces(out: Path, codecs: Sequence[str]) -> int:
    """Return how many pieces of work a run has finished."""
    journals = [out / codec / "journal.jsonl" for codec in codecs]
    return sum(journal.read_bytes().count(b"\n") for journal in journals if journal.is_file())


def killed_at(command: Sequence[str], out: Path, codecs: Sequence[str], piece: int, delay: float) -> bool:
    """Start an evaluation and kill it `delay` seconds after a piece of work; False: it ended before."""
    started = subprocess.Popen(command, cwd=ROOT, start_new_session=True, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + HANG
    while started.poll() is None and pieces(out, codecs) < piece:
        if time.monotonic() > deadline:
            break
        time.sleep(0.01)
    time.sleep(delay)
    broken_off = started.poll() is None
    if broken_off:
        os.killpg(started.pid, signal.SIGKILL)
    started.wait()
    return broken_off


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the three evaluations and compare them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--pictures", type=Path, required=True, help="folder; the first of its files are taken"
    )
    parser.add_argument("--count", type=int, default=6, help="pictures")
    parser.add_argument("--codecs", default="jpeg,webp", help="names or weights files as for codec=")
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--weights-dir", type=Path, help="for LPIPS")
    parser.add_argument("--output", type=Path, help="folder to keep the runs and report.json in")
    options = parser.parse_args(arguments)
    given, chance = options.codecs.split(","), random.Random(options.seed)
    codecs = [Path(codec).stem for codec in given]  # a weights file's results lie under its stem
    found = sorted(path for path in options.pictures.iterdir() if path.is_file())[: options.count]
    if len(found) < options.count:
        parser.error(
            f"--pictures {options.pictures}: {len(found)} files, and --count asks for {options.count}"
        )
    base = options.output or Path(tempfile.mkdtemp(prefix="evaluation-resume-"))
    if base.exists() and any(base.iterdir()):
        parser.error(f"--output {base}: not empty; give another folder")
    pictures = base / "pictures"
    pictures.mkdir(parents=True)
    for path in found:
        shutil.copy(path, pictures)

    def command(out: Path, *more: str) -> list[str]:
        weights = [f"metrics.weights_dir={options.weights_dir.resolve()}"] if options.weights_dir else []
        return [
            sys.executable, "-m", "glc.launch.evaluate", f"codec=[{','.join(given)}]", "metrics=default",
            "testset=folder", f"testset.path={pictures.resolve()}", f"out={out.resolve()}", *weights, *more,
        ]  # fmt: skip

    runs = {name: base / name for name in ("undisturbed", "killed", "two_processes")}
    quiet = {"cwd": ROOT, "check": True, "stdout": subprocess.DEVNULL, "timeout": HANG}
    start = time.monotonic()
    subprocess.run(command(runs["undisturbed"]), **quiet)
    total = pieces(runs["undisturbed"], codecs)
    moments = sorted(chance.sample(range(1, total), options.kills))
    too_late = 0
    for piece in moments:
        if not killed_at(command(runs["killed"]), runs["killed"], codecs, piece, chance.uniform(0, 0.05)):
            too_late += 1
    subprocess.run(command(runs["killed"]), **quiet)
    subprocess.run(command(runs["two_processes"], "processes=2"), **quiet)
    differing = {
        name: differences(runs["undisturbed"], runs[name], codecs) for name in ("killed", "two_processes")
    }
    report: dict[str, Any] = {
        "pictures": len(found),
        "codecs": codecs,
        "pieces": total,
        "killed_after_pieces": moments,
        "kills_too_late": too_late,
        "files_compared": len(FILES) * len(codecs) * len(differing),
        "files_that_differ": differing,
        "seed": options.seed,
        "seconds": round(time.monotonic() - start, 1),
    }
    text = json.dumps(report, indent=1)
    print(text)
    if options.output:
        (base / "report.json").write_text(text + "\n")
    else:
        shutil.rmtree(base)
    return int(bool(too_late or any(differing.values())))


if __name__ == "__main__":
    sys.exit(main())
