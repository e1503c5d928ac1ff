"""Write the page that decodes files in a browser to build/web.

    python scripts/web.py [--runtime] [FOLDER [MODEL ...]]

Fetches the pinned ONNX Runtime Web with npm into src/glc/app/web/vendor first, unless it is there; with
`--runtime` that is all. The page is written for the models, by default `small`.
"""

import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from glc.app.decoder_page import RUNTIME, SOURCE, has_runtime, write_page
from glc.codec.weights.catalog import DEFAULT_MODEL

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "onnxruntime-web"
HASHES = {
    "ort.wasm.bundle.min.mjs": "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90",
    "ort-wasm-simd-threaded.wasm": "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
}
"""SHA-256 of each file that the page needs, of the version that web/package.json names."""


def fetch_runtime() -> None:
    """Write the runtime's files to `RUNTIME`, checked.

    Raises:
        RuntimeError: npm is missing or fails, or a file is not the expected one.
    """
    npm = shutil.which("npm")
    if npm is None:
        raise RuntimeError("npm is not installed: it fetches ONNX Runtime Web, which computes the image")
    version = json.loads((SOURCE / "package.json").read_text("utf-8"))["peerDependencies"][PACKAGE]
    with tempfile.TemporaryDirectory() as temporary:
        command = [npm, "pack", "--silent", "--pack-destination", temporary, f"{PACKAGE}@{version}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        (archive, *_) = [*Path(temporary).glob("*.tgz"), None]
        if done.returncode or archive is None:
            raise RuntimeError(f"npm pack {PACKAGE}@{version} failed: {done.stderr.strip()[-200:]}")
        with tarfile.open(archive) as tar:
            files = {name: tar.extractfile(f"package/dist/{name}").read() for name in HASHES}
    for name, data in files.items():
        if hashlib.sha256(data).hexdigest() != HASHES[name]:
            raise RuntimeError(f"{PACKAGE}@{version}: {name} is not the file that scripts/web.py expects")
    RUNTIME.mkdir(exist_ok=True)
    for name, data in files.items():
        (RUNTIME / name).write_bytes(data)


def main(arguments: list[str]) -> int:
    """Run from the command line; return the exit status."""
    words = [word for word in arguments if word != "--runtime"]
    try:
        if not has_runtime():
            fetch_runtime()
        if len(words) == len(arguments):
            folder = Path(words[0]) if words else ROOT / "build" / "web"
            names = write_page(folder, words[1:] or [DEFAULT_MODEL])
            print(f"{folder}: decodes files of {', '.join(names)}; python -m http.server -d {folder}")
    except (RuntimeError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
