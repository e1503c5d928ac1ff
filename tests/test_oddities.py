"""A folder of oddities through compress, pack, train, evaluate and the page: converted, refused or named."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

import glc
from glc.app.service import Service
from glc.cli import main
from glc.data.images import png_bytes, to_uint8
from glc.data.module import ImageDataModule
from glc.data.pack import pack
from glc.evaluation.codecs.base import ImageCodec
from glc.evaluation.codecs.still import StillCodec
from tests.codec.fixed_model import fixed_codec_weights
from tests.evaluation.stand_ins import evaluation, results
from tests.oddities import Oddity, oddities


class Lossless(StillCodec):
    """PNG, whatever the quality."""

    def encode_at(self, image: Image.Image, quality: float) -> bytes:
        return png_bytes(image)


def make_lossless(device: str) -> ImageCodec:
    return Lossless("PNG", ".png", lowest=1, highest=95, qualities=(50,))


READABLE = {name: oddity for name, oddity in oddities().items() if oddity.expected is not None}
REFUSED = {name: oddity for name, oddity in oddities().items() if oddity.expected is None}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder `set` with every oddity, raw files that are left out, and a name that is not UTF-8."""
    root = tmp_path_factory.mktemp("oddities")
    (root / "set").mkdir()
    for name, oddity in oddities().items():
        (root / "set" / name).write_bytes(oddity.data)
    for name in ("a.dng", "b.DNG", "drawing.svg", "notes.txt"):
        (root / "set" / name).write_bytes(b"")
    fixed_codec_weights(root / "small.safetensors")
    return root


def run(folder: Path, *arguments: object) -> Result:
    environment = {"GLC_MODELS": str(folder), "GLC_OFFLINE": "1"}
    result = CliRunner(env=environment).invoke(main, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result


def differs(image: Image.Image, oddity: Oddity, more: float = 0.0) -> bool:
    """Whether an image is not what an oddity must be read as, within its tolerance and `more` levels."""
    assert oddity.expected is not None
    if image.size != oddity.expected.shape[1::-1]:
        return True
    difference = np.abs(np.asarray(image, float) - np.clip(oddity.expected, 0, 255))
    return bool(difference.max() > oddity.tolerance + more)


def test_compress(folder: Path, tmp_path: Path) -> None:
    result = run(folder, "compress", folder / "set", "-o", tmp_path / "out", "--device", "cpu")
    assert result.exit_code == 1
    assert "Traceback" not in result.stderr
    lines = result.stderr.splitlines()
    assert [line for line in lines if "left out" in line] == [
        f"{folder / 'set'}: note: images left out: 2 (e.g. a.dng): convert raw files to TIFF with dcraw_emu; "
        "1 (e.g. drawing.svg): render SVG with rsvg-convert"
    ]
    about = {
        name: [line for line in lines if line.startswith(f"{folder / 'set' / name}: ")] for name in oddities()
    }
    for name, oddity in REFUSED.items():
        assert len(about[name]) == 1
        assert oddity.treatment in about[name][0]
    # Treatments that depend on the image are named for each, the others for the first image.
    for name in ("pq16.png", "hlg16.png", "broken_profile.jpg", "damaged_iccp.png"):
        assert len(about[name]) == 1
        assert "note: " in about[name][0]
    transparent = [line for line in lines if "transparent, composited on white (said once" in line]
    assert len(transparent) == 1
    assert not about["plain.png"] + about["phone.jpg"] + about["exif6.jpg"]
    codec = glc.load(folder / "small.safetensors", "cpu")
    for name, oddity in READABLE.items():
        file = tmp_path / "out" / f"{Path(name).stem}.glc"
        assert file.exists()
        if oddity.tolerance > 0.1 or name == "strip.png":
            continue  # the pixels of others are known up to rounding
        plain = Image.fromarray(np.asarray(oddity.expected, np.uint8))
        assert file.read_bytes() == codec.compress(plain, 50), name
    turned = json.loads(run(folder, "info", tmp_path / "out" / "exif5.glc", "--json").stdout)
    assert (turned["width"], turned["height"]) == (32, 48)


def test_pack_and_train_on_the_shards(folder: Path, tmp_path: Path) -> None:
    manifest = pack([folder / "set"], tmp_path / "packed", workers=1, progress=False)
    assert {image["name"]: image["reason"] for image in manifest.skipped}.keys() == REFUSED.keys()
    for image in manifest.skipped:
        assert REFUSED[image["name"]].treatment in image["reason"]
    found: dict[str, dict[str, bytes]] = {}
    with tarfile.open(tmp_path / "packed" / manifest.shards[0].name) as tar:
        for member in tar:
            key, suffix = member.name.rsplit(".", 1)
            found.setdefault(key, {})[suffix] = tar.extractfile(member).read()  # type: ignore[union-attr]
    notes = {}
    for files in found.values():
        note = json.loads(files.pop("json"))
        ((suffix, data),) = files.items()
        notes[note["name"]] = note
        # As any other program reads it, without colour management.
        image = Image.open(io.BytesIO(data))
        assert image.mode == "RGB"
        assert not differs(image, READABLE[note["name"]], 3.5 if suffix == "jpg" else 0), note["name"]
    assert notes.keys() == READABLE.keys()
    for name, note in notes.items():
        assert READABLE[name].treatment in " ".join(note.get("treatment", []))
    assert "treatment" not in notes["plain.png"]
    data = ImageDataModule(str(tmp_path / "packed"), str(tmp_path / "packed"), crop=8, batch_size=16,
                           epoch_batches=8, stride=1, num_workers=0)  # fmt: skip
    keys = {key for batch in data.train_dataloader() for key in batch.key}
    assert keys <= found.keys()
    assert len(keys) > len(found) / 2


def test_train_on_the_folder(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = str(folder / "set")
    data = ImageDataModule(
        path, path, crop=8, batch_size=len(oddities()), epoch_batches=1, stride=1, num_workers=0
    )
    seen = {}
    for batch in data.val_dataloader():
        seen[batch.key[0]] = Image.fromarray(to_uint8(batch.x[0]).permute(1, 2, 0).numpy())
    assert seen.keys() == READABLE.keys()
    assert [name for name, image in seen.items() if differs(image, READABLE[name])] == []
    for name, oddity in REFUSED.items():
        assert any(name in text and oddity.treatment in text for text in caplog.messages)
    assert sum("images left out: 2 (e.g. a.dng)" in text for text in caplog.messages) == 1
    (batch,) = data.train_dataloader()
    assert set(batch.key) <= READABLE.keys()
    # The crops of flat images have their colours.
    for key, crop in zip(batch.key, batch.x, strict=True):
        if key in ("animated_gif.gif", "animated.png", "one.png"):
            assert crop[:, 0, 0].tolist() == np.asarray(READABLE[key].expected)[0, 0].tolist()


def test_evaluate(folder: Path, tmp_path: Path) -> None:
    evaluation(tmp_path / "run", folder / "set", metrics=["psnr"], make_codec=make_lossless).run()
    summary, rows = results(tmp_path / "run")
    assert [row["image"] for row in rows] == sorted(Path(name).stem for name in READABLE)
    failed = {failure["image"]: failure["reason"] for failure in summary["failed"]}
    assert failed.keys() == {Path(name).stem for name in REFUSED}
    for name, oddity in REFUSED.items():
        assert oddity.treatment in failed[Path(name).stem]
    treated = {entry["image"]: " ".join(entry["treatment"]) for entry in summary["treatments"]}
    assert "plain" not in treated
    for name, oddity in READABLE.items():
        assert oddity.treatment in treated.get(Path(name).stem, "")
        # The codec loses nothing: its output is the original that was measured.
        decoded = Image.open(tmp_path / "run" / "reconstructions" / "q50" / f"{Path(name).stem}.png")
        assert not differs(decoded, oddity), name
        assert decoded.info["srgb"] == 0


def test_page(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLC_MODELS", str(folder))
    service = Service("small", "cpu")
    for name, oddity in REFUSED.items():
        with pytest.raises(ValueError, match=f"^{name}: .*{oddity.treatment}"):
            service.compress(folder / "set" / name, "small")
    for name, oddity in READABLE.items():
        notes: list[str] = []
        assert not differs(service.read_image(folder / "set" / name, notes), oddity)
        assert bool(notes) == oddity.named
    coded = service.compress(folder / "set" / "p3_alpha.png", "small")
    assert not differs(coded.original, oddities()["p3_alpha.png"])
    assert coded.note.startswith("p3_alpha.png: note: transparent, composited on white")
    assert service.compress(folder / "set" / "p3.png", "small").note == ""
