"""Models by name."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import glc
from glc import pretrained
from glc.codec.weights.catalog import FOLDER_VARIABLE, catalog, find
from glc.codec.weights.file import read_weights
from glc.codec.weights.labels import VariantLabel, read_label
from glc.codec.weights.variants import read_variant, save_variant
from glc.errors import WeightsError
from tests.codec.fixed_model import fixed_codec_weights, fixed_image


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A folder of glc's own with the models small and natural, and one of the user's with mine."""
    own, users = tmp_path / "own", tmp_path / "users"
    for file in (own / "small.safetensors", own / "natural.safetensors", users / "mine.safetensors"):
        file.parent.mkdir(exist_ok=True)
        file.touch()
    monkeypatch.setattr(pretrained, "__path__", [str(own)])
    monkeypatch.setenv("GLC_MODELS", str(users))
    monkeypatch.chdir(tmp_path)
    return own, users


def test_models_are_named_by_their_files(folders: tuple[Path, Path]) -> None:
    own, users = folders
    assert catalog() == {
        "natural": own / "natural.safetensors",
        "small": own / "small.safetensors",
        "mine": users / "mine.safetensors",
    }
    for name, file in catalog().items():
        assert find(name) == file


@pytest.mark.parametrize("value", [None, "", "missing"])
def test_without_a_user_folder_only_bundled_models_are_listed(
    value: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(FOLDER_VARIABLE)
    if value is not None:
        monkeypatch.setenv(FOLDER_VARIABLE, value)
    assert sorted(catalog()) == ["natural", "small"]


def test_user_models_take_precedence(folders: tuple[Path, Path]) -> None:
    users = folders[1] / "small.safetensors"
    users.touch()
    assert find("small") == users


def test_other_files_are_not_listed(folders: tuple[Path, Path]) -> None:
    for folder in folders:
        for name in ("notes.txt", "half.safetensors.part", "checkpoint.ckpt"):
            (folder / name).touch()
    assert sorted(catalog()) == ["mine", "natural", "small"]


def test_a_file_is_found_by_its_path(folders: tuple[Path, Path], tmp_path: Path) -> None:
    file = folders[1] / "mine.safetensors"
    assert find(file) == find(str(file)) == file
    assert find("users/mine.safetensors") == Path("users/mine.safetensors")
    (tmp_path / "odd").touch()
    assert find("odd") == Path("odd")


def test_folder_with_a_models_name_is_ignored(folders: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "small").mkdir()
    assert find("small") == folders[0] / "small.safetensors"


@pytest.mark.parametrize("path", ["missing.safetensors", "users/missing", "/nowhere/at/all", "users/"])
def test_a_missing_file_is_named(path: str) -> None:
    with pytest.raises(WeightsError, match=rf"{Path(path)}"):
        find(path)


def test_unknown_name_lists_available_models() -> None:
    with pytest.raises(
        WeightsError, match=r"no model 'huge' \(available: mine, natural, small\).*glc export"
    ):
        find("huge")


def test_message_without_models_names_glc_export(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretrained, "__path__", [])
    monkeypatch.delenv(FOLDER_VARIABLE)
    with pytest.raises(WeightsError, match=r"no model 'small' \(none is available by name\).*glc export"):
        find("small")


def test_load_takes_a_name_and_a_file(folders: tuple[Path, Path]) -> None:
    file = fixed_codec_weights(folders[1] / "fixed.safetensors")
    assert glc.load("fixed", "cpu").fingerprint == glc.load(file, "cpu").fingerprint
    with pytest.raises(WeightsError, match=r"mine\.safetensors: not a safetensors file"):
        glc.load("mine", "cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A codec, another one, and an encoder and a decoder for the first whose weights were moved a little."""
    folder = tmp_path_factory.mktemp("parts")
    fixed_codec_weights(folder / "codec.safetensors")
    fixed_codec_weights(folder / "other.safetensors", seed=1)
    weights = read_weights(folder / "codec.safetensors")
    torch.manual_seed(0)
    for kind in ("encoder", "decoder"):
        state = getattr(weights.model, kind).state_dict()
        moved = {name: t + 0.05 * torch.randn(t.shape) * t.abs().mean() for name, t in state.items()}
        save_variant(
            folder / f"moved.{kind}.safetensors",
            kind,  # type: ignore[arg-type]
            moved,
            weights.description[kind],
            weights.fingerprint,
            {"stage": "test"},
        )
    return folder


@pytest.fixture(scope="module")
def codec(folder: Path) -> glc.Codec:
    return glc.load(folder / "codec.safetensors", "cpu")


def test_any_decoder_decodes_files_of_any_encoder(folder: Path, codec: glc.Codec) -> None:
    other = glc.load(folder / "codec.safetensors", "cpu", encoder=folder / "moved.encoder.safetensors")
    image = fixed_image(96, 64)
    data = other.compress(image)
    assert data != codec.compress(image)
    assert other.fingerprint == codec.fingerprint
    assert np.array_equal(np.asarray(codec.decompress(data)), np.asarray(other.decompress(data)))


def test_variant_decoder_renders_the_same_symbols_differently(folder: Path, codec: glc.Codec) -> None:
    other = glc.load(folder / "codec.safetensors", "cpu", decoder=folder / "moved.decoder.safetensors")
    data = codec.compress(fixed_image(96, 64))
    assert other.compress(fixed_image(96, 64)) == data
    ours, theirs = codec.symbols(data), other.symbols(data)
    assert ours.y is not None
    assert torch.equal(torch.as_tensor(ours.y), torch.as_tensor(theirs.y))
    assert torch.equal(torch.as_tensor(ours.z), torch.as_tensor(theirs.z))
    assert not np.array_equal(np.asarray(codec.decompress(data)), np.asarray(other.decompress(data)))


def test_attach_does_not_change_the_codec(folder: Path, codec: glc.Codec) -> None:
    before = codec.compress(fixed_image(96, 64))
    glc.load(folder / "codec.safetensors", "cpu", encoder=folder / "moved.encoder.safetensors")
    assert codec.compress(fixed_image(96, 64)) == before


def test_variants_are_listed_by_name_but_not_as_models(
    folder: Path, codec: glc.Codec, monkeypatch: pytest.MonkeyPatch
) -> None:
    from glc.codec.weights.catalog import catalog

    monkeypatch.setenv("GLC_MODELS", str(folder))
    assert {"codec", "other"} <= catalog().keys()
    assert not [name for name in catalog() if "moved" in name]
    assert catalog("encoder")["moved"] == folder / "moved.encoder.safetensors"
    data = glc.load("codec", "cpu", encoder="moved").compress(fixed_image(96, 64))
    assert data != codec.compress(fixed_image(96, 64))
    with pytest.raises(glc.WeightsError, match=r"no encoder 'mved'.*available: moved"):
        glc.load("codec", "cpu", encoder="mved")


def test_variant_of_another_codec_is_refused(folder: Path) -> None:
    with pytest.raises(glc.WeightsError, match=r"moved\.encoder\.safetensors: encoder for the codec"):
        glc.load(folder / "other.safetensors", "cpu", encoder=folder / "moved.encoder.safetensors")
    with pytest.raises(glc.WeightsError, match="is not an encoder but one decoder: use it with --decoder"):
        glc.load(folder / "codec.safetensors", "cpu", encoder=folder / "moved.decoder.safetensors")
    with pytest.raises(glc.WeightsError, match="is not a codec but one encoder: use it with --encoder"):
        glc.load(folder / "moved.encoder.safetensors", "cpu")
    with pytest.raises(glc.WeightsError, match="is not an encoder but a complete codec: use it with --model"):
        glc.load(folder / "codec.safetensors", "cpu", encoder=folder / "other.safetensors")
    with pytest.raises(glc.WeightsError, match="no such weights file"):
        glc.load(folder / "codec.safetensors", "cpu", encoder=folder / "none.safetensors")


def test_corrupt_variants_are_refused(folder: Path, tmp_path: Path) -> None:
    source = folder / "moved.encoder.safetensors"
    with safe_open(source, framework="pt") as file:
        metadata, names = file.metadata(), list(file.keys())
        tensors = {name: file.get_tensor(name) for name in names}
    tensors[names[0]].view(-1)[0] += 1
    save_file(tensors, tmp_path / "changed.safetensors", metadata)
    with pytest.raises(glc.WeightsError, match="corrupt"):
        read_variant(tmp_path / "changed.safetensors", "encoder")
    (tmp_path / "cut.safetensors").write_bytes(source.read_bytes()[:-100])
    with pytest.raises(glc.WeightsError, match="not a safetensors file"):
        read_variant(tmp_path / "cut.safetensors", "encoder")
    save_file(tensors, tmp_path / "newer.safetensors", {**metadata, "format": "2"})
    with pytest.raises(glc.WeightsError, match="format 2 is newer"):
        read_label(tmp_path / "newer.safetensors")


def test_label_describes_the_training(folder: Path, codec: glc.Codec) -> None:
    label = read_label(folder / "moved.decoder.safetensors")
    assert isinstance(label, VariantLabel)
    assert label.kind == "decoder"
    assert bytes.fromhex(label.fingerprint).startswith(codec.fingerprint)
    assert label.about == {"stage": "test"}
