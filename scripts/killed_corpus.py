"""Kill a compression of shards at random moments, go on, and compare with one that nothing happened to.

    python scripts/killed_corpus.py --seed 0 --kills 10 --output killed
    python scripts/killed_corpus.py --evaluate --seed 0 --kills 10 --output killed

Small crops of the photographs that come inside installed packages, some of them damaged, in shards. One
command with several processes is killed (SIGKILL) when it has reached a random place: the whole of it, or one
process, in which case the others go on. The same command is given again until it is done. The shards, the
manifest and the list of failures must then be those of one process that was left alone, byte for byte, and
hold every sample once.
With --evaluate it is an evaluation of the shards, and its tables and summary are compared too.
Writes summary.json; exits with 1 when anything differs.
"""

import argparse
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

from glc.data.images import read_rgb
from glc.data.sources import sample_paths
from glc.jobs.manifest import Folder
from glc.jobs.progress import Watch
from glc.jobs.tar_shards import find_shards

ROOT = Path(__file__).resolve().parents[1]
SILENT: dict[str, Any] = {"cwd": ROOT, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}


def write_shards(folder: Path, shards: int, pictures: int, side: int, rng: random.Random) -> int:
    """Write shards of crops, with a text beside each; every 500th picture is cut short. How many are."""
    folder.mkdir(parents=True)
    sources = [read_rgb(path) for path in sample_paths("train")]
    damaged = 0
    for shard in range(shards):
        with tarfile.open(folder / f"in-{shard:06d}.tar", "w") as tar:
            for place in range(shard * pictures // shards, (shard + 1) * pictures // shards):
                source = rng.choice(sources)
                left, top = (rng.randrange(length - side) for length in source.size)
                stream = io.BytesIO()
                crop = source.crop((left, top, left + side - rng.randrange(9), top + side))
                crop.save(stream, "JPEG", quality=95)
                content = stream.getvalue()
                if place % 500 == 123:
                    content = content[: len(content) // 2]
                    damaged += 1
                for suffix, data in (("jpg", content), ("txt", f"picture {place}".encode())):
                    member = tarfile.TarInfo(f"{place:08d}.{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    return damaged


def compressing(given: Path, shards: int, weights: Path, out: Path, processes: int) -> list[str]:
    """Return the command line that compresses the shards in a folder."""
    words = [
        "compress",
        "--shards",
        pattern(given, shards),
        "-o",
        str(out),
        "--model",
        str(weights),
        "--keep",
    ]
    main = "import sys; from glc.cli import main; main(sys.argv[1:])"
    return [sys.executable, "-c", main, *words, "--processes", str(processes), "--quiet", "--device", "cpu"]


def evaluating(
    given: Path, shards: int, weights: Path, out: Path, processes: int, metrics: Path
) -> list[str]:
    """Return the command line that evaluates the shards in a folder, with metrics' weights in another."""
    words = [
        f"codec={weights}",
        "qualities=[30,70]",
        "testset=shards",
        f"testset.path='{pattern(given, shards)}'",
    ]
    words += ["metrics=full", f"metrics.weights_dir={metrics}", "device=cpu", f"out={out}"]
    return [sys.executable, "-m", "glc.launch.evaluate", *words, f"processes={processes}"]


def pattern(given: Path, shards: int) -> str:
    """Return what names the shards that `write_shards` wrote."""
    return str(given / f"in-{{000000..{shards - 1:06d}}}.tar")


def command(given: argparse.Namespace, weights: Path, out: Path, processes: int) -> list[str]:
    """Return the command line that was asked for."""
    place = given.output / "in"
    if given.evaluate:
        metrics = given.weights_dir or given.output
        return evaluating(place, given.shards, weights, out, processes, metrics)
    return compressing(place, given.shards, weights, out, processes)


def workers_of(process: subprocess.Popen[bytes]) -> list[int]:
    """Return the processes of a command that compute (Linux)."""
    found = []
    try:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        for child in children:
            if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
                found.append(int(child))
    except OSError:
        pass
    return found


def disturb(given: argparse.Namespace, weights: Path, out: Path, rng: random.Random) -> dict[str, int]:
    """Compress into `out`, killing on the way, until it is done; what was killed how often."""
    shards = find_shards([str(given.output / "in")])
    folder = Folder(out)
    report = {"kills": 0, "commands": 0, "single_processes": 0, "starts": 0}
    line = command(given, weights, out, given.processes)
    reached = 0
    while True:
        report["starts"] += 1
        process = subprocess.Popen(line, start_new_session=True, **SILENT)
        watch = Watch(folder, shards)
        while process.poll() is None and report["kills"] < given.kills:
            room = (watch.total - reached) / (given.kills - report["kills"] + 1)
            target = reached + rng.uniform(0, 2 * room) * 0.9
            while process.poll() is None:
                reached = watch.look().bytes if folder.notes.is_dir() else 0
                if reached >= target and workers_of(process):
                    break
                time.sleep(0.01)
            if process.poll() is not None:
                break
            alive = workers_of(process)
            if alive and rng.random() < 0.5:
                os.kill(rng.choice(alive), signal.SIGKILL)
                report["single_processes"] += 1
                report["kills"] += 1
            else:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                report["commands"] += 1
                report["kills"] += 1
        code = process.wait()
        if code in (0, 1):
            return report
        if code not in (3, -signal.SIGKILL) or report["starts"] > 5 * given.kills + 5:
            raise SystemExit(f"the command ended with {code}")


def compare(one: Path, other: Path, pictures: int, damaged: int) -> list[str]:
    """Return how two folders of shards differ, and what is wrong with the first."""
    wrong = []
    names = [sorted(p.name for p in place.iterdir() if p.is_file()) for place in (one, other)]
    if names[0] != names[1]:
        wrong.append(f"files: {names}")
    wrong += [name for name in names[0] if (one / name).read_bytes() != (other / name).read_bytes()]
    keys = []
    for path in sorted(one.glob("*.tar")):
        with tarfile.open(path) as tar:
            keys += [name for name in tar.getnames() if name.endswith((".glc", ".json"))]
    listed = one / "failures.jsonl"
    lines = listed.read_text().splitlines() if listed.exists() else []
    failed = [json.loads(line)["key"] for line in lines]
    found = sorted([key.partition(".")[0] for key in keys] + failed)
    if found != [f"{place:08d}" for place in range(pictures)] or len(failed) != damaged:
        wrong.append(f"{len(keys)} done, {len(failed)} failed, {len(set(found))} different of {pictures}")
    totals = json.loads((one / "manifest.json").read_text())["totals"]
    if (totals["samples"], totals["done"], totals["failed"]) != (pictures, len(keys), damaged):
        wrong.append(f"manifest: {totals}")
    return wrong


def main() -> None:
    """Parse the command line, run, print and write the summary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--shards", type=int, default=20)
    parser.add_argument("--processes", type=int, default=3)
    parser.add_argument("--side", type=int, default=48, help="of the crops, in pixels")
    parser.add_argument("--weights", type=Path, help="of the codec  [default: tiny, with random weights]")
    parser.add_argument("--evaluate", action="store_true", help="with `glc eval` instead of `glc compress`")
    parser.add_argument("--weights-dir", type=Path, help="of LPIPS, for --evaluate  [default: without it]")
    parser.add_argument("--output", type=Path, required=True, help="folder; what is in it is replaced")
    given = parser.parse_args()
    os.environ.update(OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="")
    given.output = given.output.resolve()
    given.weights_dir = given.weights_dir.resolve() if given.weights_dir else None
    shutil.rmtree(given.output, ignore_errors=True)
    rng = random.Random(given.seed)
    damaged = write_shards(given.output / "in", given.shards, given.pictures, given.side, rng)
    weights = given.weights.resolve() if given.weights else None
    if weights is None:
        weights = given.output / "tiny.safetensors"
        script = [sys.executable, str(ROOT / "scripts" / "random_weights.py"), "tiny", str(weights)]
        subprocess.run(script, check=True, stdout=subprocess.DEVNULL)
    began = time.monotonic()
    alone = subprocess.run(command(given, weights, given.output / "alone", 1), check=False, **SILENT)
    seconds = time.monotonic() - began
    if alone.returncode != (1 if damaged else 0):
        raise SystemExit(f"the undisturbed run ended with {alone.returncode}")
    report: dict[str, Any] = {"seed": given.seed, "pictures": given.pictures, "seconds_alone": round(seconds)}
    report |= disturb(given, weights, given.output / "killed", rng)
    report["wrong"] = compare(given.output / "killed", given.output / "alone", given.pictures, damaged)
    (given.output / "summary.json").write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))
    if report["wrong"] or report["kills"] < given.kills:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
