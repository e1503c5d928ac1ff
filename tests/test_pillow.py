"""The Pillow plugin: sizes without decoding, round trips, Pillow's errors, loaders, processes and threads."""

import io
import multiprocessing
import pickle
import re
import sys
import tarfile
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile
from torch.utils.data import DataLoader

import glc
import glc.pillow
from glc.data.images import read_rgb
from tests.codec.fixed_model import fixed_codec_weights, fixed_image
from tests.programs import ROOT, fresh


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fixed_codec_weights(tmp_path_factory.mktemp("weights") / "fixed.safetensors")


@pytest.fixture(scope="module")
def codec(weights: Path) -> glc.BaseCodec:
    return glc.load(weights, "cpu")


@pytest.fixture(scope="module")
def data(codec: glc.BaseCodec) -> bytes:
    return codec.compress(fixed_image(40, 50), quality=100)


@pytest.fixture(autouse=True)
def registered(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Register the plugin with the fixed codec, and undo it after the test."""
    Image.init()
    for name in ("OPEN", "SAVE", "EXTENSION", "MIME"):
        monkeypatch.setattr(Image, name, dict(getattr(Image, name)))
    monkeypatch.setattr(Image, "ID", list(Image.ID))
    monkeypatch.setattr(glc.pillow, "_codecs", {})
    monkeypatch.setattr(glc.pillow, "_settings", glc.pillow._settings)
    glc.pillow.register(model=weights)


def open_bytes(data: bytes) -> ImageFile.ImageFile:
    return Image.open(io.BytesIO(data))


def test_size_and_header_need_no_codec(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "photo.glc"
    path.write_bytes(data)
    with Image.open(path) as image:
        assert (image.size, image.mode, image.format) == ((50, 40), "RGB", "GLC")
        assert image.get_format_mimetype() == "image/x-glc"
        assert image.info == {"rate_index": 3.0, "fingerprint": data[4:8].hex()}
        image.verify()
    assert not glc.pillow._codecs
    assert Image.registered_extensions()[".glc"] == "GLC"


def test_a_process_that_reads_sizes_imports_no_engine(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "photo.glc").write_bytes(data)
    program = (
        "import sys; from PIL import Image; import glc.pillow; glc.pillow.register()\n"
        "print(Image.open(sys.argv[1]).size, {'torch', 'onnxruntime'} & set(sys.modules))"
    )
    done = fresh(["-c", program, str(tmp_path / "photo.glc")])
    assert done.stdout == "(50, 40) set()\n", done.stderr


def test_the_pixels_are_those_of_the_codec(codec: glc.BaseCodec, data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "photo.glc"
    path.write_bytes(data)
    image = Image.open(path)
    image.load()
    assert np.array_equal(np.asarray(image), np.asarray(codec.decompress(data)))
    assert image.fp is None  # Pillow closes what it opened
    image.putpixel((0, 0), (1, 2, 3))
    assert image.getpixel((0, 0)) == (1, 2, 3)


@pytest.mark.parametrize("options", [{}, {"quality": 100}, {"target_bpp": 2.5}, {"target_size": 700}])
def test_saving_writes_what_the_codec_writes(options: dict, codec: glc.BaseCodec, tmp_path: Path) -> None:
    image = Image.fromarray(fixed_image(40, 50))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", glc.TargetWarning)
        image.save(tmp_path / "photo.glc", **options)
        assert (tmp_path / "photo.glc").read_bytes() == codec.compress(image, **options)
    assert Image.open(tmp_path / "photo.glc").size == (50, 40)


def test_transparent_images_are_saved_on_white(codec: glc.BaseCodec) -> None:
    written = io.BytesIO()
    Image.new("RGBA", (16, 16), (0, 0, 0, 0)).save(written, "glc")
    assert written.getvalue() == codec.compress(Image.new("RGB", (16, 16), "white"))


@pytest.mark.parametrize("options", [{"quality": 101}, {"quality": 5, "target_bpp": 1}, {"target_size": 3}])
def test_a_failed_save_leaves_no_file(options: dict, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"quality must lie|not two of them|quality 0"):
        Image.new("RGB", (16, 16)).save(tmp_path / "photo.glc", **options)
    assert not (tmp_path / "photo.glc").exists()


@pytest.mark.parametrize("end", [14, 17, 18, -1])
def test_truncated_files(end: int, data: bytes) -> None:
    image = open_bytes(data[:end])
    assert image.size == (50, 40)
    for _ in range(2):  # a second attempt reports the same
        with pytest.raises(OSError, match=r"^image file is truncated or corrupt: "):
            image.load()
    with pytest.raises(OSError, match=r"^image file is truncated"):
        open_bytes(data[:end]).verify()


def test_a_payload_that_does_not_decode(codec: glc.BaseCodec, data: bytes) -> None:
    header, payload = glc.codec.bitstream.unpack(data)
    with pytest.raises(OSError, match=r"^image file is truncated or corrupt: "):
        open_bytes(glc.codec.bitstream.pack(header, payload + b"\1" * 40)).load()


@pytest.mark.parametrize("content", [b"", b"GLC", b"GLC\1" + b"\0" * 9, b"GLC\0" + b"\0" * 30, b"GLAD" * 9])
def test_foreign_files(content: bytes) -> None:
    with pytest.raises(Image.UnidentifiedImageError):
        open_bytes(content)


def test_newer_files_are_not_identified_with_a_reason(data: bytes) -> None:
    with (
        pytest.warns(UserWarning, match="format version 2; this glc reads version 1: update glc"),
        pytest.raises(Image.UnidentifiedImageError),
    ):
        open_bytes(data[:3] + b"\2" + data[4:])


def test_limits_are_those_of_pillow(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1999)  # of 2000
    with pytest.warns(Image.DecompressionBombWarning):
        open_bytes(data)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 999)
    with pytest.raises(Image.DecompressionBombError):
        open_bytes(data)
    assert not glc.pillow._codecs


def test_an_endless_stream_is_not_read_to_its_end(data: bytes) -> None:
    class Endless(io.BytesIO):
        taken = 0

        def read(self, size: int | None = -1) -> bytes:
            assert size is not None
            assert size >= 0
            self.taken += size
            return super().read(size).ljust(size, b"x")

    stream = Endless(data)
    with pytest.raises(OSError, match=r"truncated or corrupt"):
        Image.open(stream).load()
    assert stream.taken < 2_000_000


def test_files_of_another_model(data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = fixed_codec_weights(tmp_path / "models" / "other.safetensors", seed=1)
    glc.pillow.register(model=other)
    hint = r"the file was written with weights \w{8}; this model's are \w{8}; .*register\(model=FILE\)"
    with pytest.raises(OSError, match=hint):
        open_bytes(data).load()
    glc.pillow.register()
    said = r"weights \w{8}, which match no known model; .*register\(model=FILE\)"
    with pytest.raises(glc.ImageError, match=rf"^a\.glc: cannot decode a \.glc file: .*{said}"):
        read_rgb(data, "a.glc")
    with pytest.raises(OSError, match=said):
        open_bytes(data).load()
    # Without a model, the file's own is found by its fingerprint.
    monkeypatch.setenv("GLC_MODELS", str(other.parent))
    codec = glc.load(other, "cpu")
    theirs = codec.compress(fixed_image(16, 16))
    assert np.array_equal(np.asarray(open_bytes(theirs)), np.asarray(codec.decompress(theirs)))


def test_settings_are_checked_when_registering(tmp_path: Path) -> None:
    with pytest.raises(glc.WeightsError, match=r"none\.safetensors: no such weights file"):
        glc.pillow.register(model=tmp_path / "none.safetensors")
    with pytest.raises(ValueError, match="backend must be auto, torch or onnx, got 'jax'"):
        glc.pillow.register(backend="jax")


def test_a_model_that_breaks_later_is_named(data: bytes, weights: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(weights.read_bytes())
    glc.pillow.register(model=copy)
    copy.write_bytes(weights.read_bytes()[:-9])
    with pytest.raises(glc.WeightsError, match=r"glc\.pillow: .*copy\.safetensors: "):
        open_bytes(data).load()


def test_threads_share_one_codec(data: bytes, codec: glc.BaseCodec) -> None:
    wanted = np.asarray(codec.decompress(data))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: np.asarray(open_bytes(data)), range(8)))
    assert all(np.array_equal(each, wanted) for each in found)
    assert len(glc.pillow._codecs) == 1


def test_images_pickle_with_their_pixels(data: bytes) -> None:
    image = pickle.loads(pickle.dumps(open_bytes(data)))
    assert np.array_equal(np.asarray(image), np.asarray(open_bytes(data)))
    assert image.info["rate_index"] == 3.0


def decode_elsewhere(data: bytes) -> bytes:
    return open_bytes(data).tobytes()


@pytest.mark.parametrize("backend", ["torch", "onnx"])
def test_a_forked_process_decodes_after_its_parent_did(backend: str, data: bytes, weights: Path) -> None:
    glc.pillow.register(model=weights, backend=backend)
    wanted = decode_elsewhere(data)
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply_async(decode_elsewhere, [data]).get(60) == wanted


class Files(torch.utils.data.Dataset):
    def __init__(self, files: list[bytes]) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> np.ndarray:
        return np.asarray(open_bytes(self.files[index]))


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_loaders_with_worker_processes(
    start: str, data: bytes, codec: glc.BaseCodec, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [codec.compress(fixed_image(40, 50, seed)) for seed in range(4)]
    monkeypatch.setenv("GLC_MODELS", str(weights.parent))  # found by fingerprint in a process started afresh
    init = glc.pillow.register if start == "spawn" else None
    loader = DataLoader(
        Files(files), 2, num_workers=1 + (start == "fork"), multiprocessing_context=start, worker_init_fn=init
    )
    found = torch.cat(list(loader)).numpy()
    wanted = np.stack([np.asarray(codec.decompress(file)) for file in files])
    assert np.abs(found.astype(int) - wanted).max() <= 1  # other numbers of threads round differently


def shard(path: Path, data: bytes, count: int) -> Path:
    with tarfile.open(path, "w") as tar:
        for number in range(count):
            for ending, content in (("glc", data), ("txt", b"a caption")):
                member = tarfile.TarInfo(f"{number:04d}.{ending}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return path


def test_webdataset_decodes_a_shard_in_a_loader(data: bytes, tmp_path: Path) -> None:
    import webdataset

    decoder = webdataset.imagehandler("torchrgb8", extensions=["glc"])
    url = str(shard(tmp_path / "a.tar", data, 5))
    samples = webdataset.WebDataset(url, shardshuffle=False, empty_check=False).decode(decoder)
    loader = DataLoader(samples.to_tuple("glc", "txt"), batch_size=None, num_workers=1)
    found = list(loader)
    assert [text for _, text in found] == ["a caption"] * 5
    wanted = np.asarray(open_bytes(data)).transpose(2, 0, 1).astype(int)
    assert all(np.abs(x.numpy() - wanted).max() <= 1 for x, _ in found)


def test_training_on_shards_of_glc_files(
    weights: Path, codec: glc.BaseCodec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`data.glc_model` registers the plugin here and in the workers; each crop is a decoded image."""
    from glc.data.module import ImageDataModule

    files = [codec.compress(fixed_image(16, 16, seed)) for seed in range(3)]
    with tarfile.open(tmp_path / "train.tar", "w") as tar:
        for number, content in enumerate(files):
            member = tarfile.TarInfo(f"{number}.glc")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    (tmp_path / "val").mkdir()
    (tmp_path / "val" / "0.glc").write_bytes(files[0])
    options = {"crop": 16, "stride": 16, "batch_size": 3, "epoch_batches": 2, "flip": False, "num_workers": 1}
    for name in ("OPEN", "EXTENSION"):
        monkeypatch.delitem(getattr(Image, name), "GLC" if name == "OPEN" else ".glc")
    sources = (str(tmp_path / "train.tar"), str(tmp_path / "val"))
    with pytest.raises(ValueError, match=r"data\.train: .*train\.tar: it contains no image"):
        ImageDataModule(*sources, **options).setup("fit")
    with pytest.raises(ValueError, match=r"^data\.glc_model: there is no model 'none'"):
        ImageDataModule(*sources, **options, glc_model="none").setup("fit")
    data = ImageDataModule(*sources, **options, glc_model=str(weights))
    wanted = [np.asarray(codec.decompress(file)).transpose(2, 0, 1).astype(int) for file in files]
    batches = list(data.train_dataloader())
    assert len(batches) == 2
    for x, names in batches:
        for levels, name in zip(x.numpy(), names, strict=True):
            assert np.abs(levels - wanted[int(Path(name).stem[-1])]).max() <= 1
    (validation,) = data.val_dataloader()
    assert np.abs((validation.x[0].numpy() + 1) * 127.5 - wanted[0]).max() <= 1.01


def test_torchvision_image_folder(data: bytes, tmp_path: Path) -> None:
    from torchvision.datasets import ImageFolder

    for name in ("cats/a.glc", "dogs/b.glc", "dogs/notes.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    found = ImageFolder(tmp_path, is_valid_file=lambda path: path.endswith(glc.pillow.EXTENSION))
    assert [label for _, label in found] == [0, 1]
    assert np.array_equal(np.asarray(found[0][0]), np.asarray(open_bytes(data)))


def test_hugging_face_image_feature(data: bytes, tmp_path: Path) -> None:
    import datasets

    path = tmp_path / "a.glc"
    path.write_bytes(data)
    rows = datasets.Dataset.from_dict(
        {"image": [str(path), {"bytes": data, "path": None}]},
        features=datasets.Features({"image": datasets.Image()}),
    )
    for row in rows:
        assert np.array_equal(np.asarray(row["image"]), np.asarray(open_bytes(data)))
    stored = rows.cast_column("image", datasets.Image(decode=False))
    assert stored[1]["image"]["bytes"] == data


def test_no_plugin_without_registration(data: bytes) -> None:
    program = (
        "import io, sys; from PIL import Image; import glc\n"
        "try: Image.open(io.BytesIO(bytes.fromhex(sys.argv[1])))\n"
        "except Image.UnidentifiedImageError: print('unknown')"
    )
    assert fresh(["-c", program, data.hex()]).stdout == "unknown\n"
    assert "glc.pillow" in sys.modules


def test_the_examples_of_the_documentation_run(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "small.safetensors").write_bytes(weights.read_bytes())
    monkeypatch.setenv("GLC_MODELS", str(tmp_path / "models"))
    monkeypatch.chdir(tmp_path)
    Image.fromarray(fixed_image(16, 16)).save("photo.png")
    Path("photos", "cats").mkdir(parents=True)
    Image.fromarray(fixed_image(16, 16)).save("photos/cats/a.glc")
    shard(Path("train-000.tar"), Path("photos/cats/a.glc").read_bytes(), 2)
    text = (ROOT / "docs/pillow.md").read_text()
    found: dict = {}
    for block in re.findall(r"```python\n(.*?)```", text, re.S):
        exec(block, found)
    assert found["image"].size == found["rows"][0]["image"].size == (16, 16)
    assert found["folder"][0][0].mode == "RGB"
    assert [image.size for (image,) in found["loader"]] == [(16, 16)] * 2
