"""scripts/web.py: how ONNX Runtime Web is fetched, with a stand-in for npm."""

import hashlib
import io
import tarfile
from pathlib import Path

import pytest

from tests.programs import load_script

FILES = {"ort.wasm.bundle.min.mjs": b"export {}", "ort-wasm-simd-threaded.wasm": b"\0asm"}


@pytest.fixture
def vendor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for the runtime, and an npm that packs FILES."""
    with tarfile.open(tmp_path / "archive", "w:gz") as archive:
        for name, data in FILES.items():
            entry = tarfile.TarInfo(f"package/dist/{name}")
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    npm = tmp_path / "bin" / "npm"
    npm.parent.mkdir()
    npm.write_text(
        f'#!/bin/sh\n/bin/cp "{tmp_path}/archive" "$4/package.tgz"; echo "$5" > "{tmp_path}/asked"\n'
    )
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", str(npm.parent))
    vendor = tmp_path / "vendor"
    monkeypatch.setattr("glc.app.decoder_page.RUNTIME", vendor)
    return vendor


def test_the_pinned_version_is_fetched_and_kept(vendor: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = load_script("web")
    monkeypatch.setattr(
        script, "HASHES", {name: hashlib.sha256(data).hexdigest() for name, data in FILES.items()}
    )
    assert script.main(["--runtime"]) == 0
    assert {path.name: path.read_bytes() for path in vendor.iterdir()} == FILES
    assert (vendor.parent / "asked").read_text().startswith("onnxruntime-web@1.")
    (vendor.parent / "asked").unlink()
    assert script.main(["--runtime"]) == 0
    assert not (vendor.parent / "asked").exists()


def test_other_files_are_refused(vendor: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert load_script("web").main(["--runtime"]) == 1
    assert "ort.wasm.bundle.min.mjs is not the file that scripts/web.py expects" in capsys.readouterr().err
    assert not vendor.exists()


@pytest.mark.parametrize(("text", "message"), [(None, "npm is not installed"), ("exit 1", "npm pack")])
def test_a_missing_or_failing_npm_ends_in_one_line(
    vendor: Path, capsys: pytest.CaptureFixture[str], text: str | None, message: str
) -> None:
    npm = vendor.parent / "bin" / "npm"
    npm.unlink()
    if text is not None:
        npm.write_text(f"#!/bin/sh\n{text}\n")
        npm.chmod(0o755)
    assert load_script("web").main(["--runtime"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {message}")
