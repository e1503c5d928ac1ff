"""Models by name."""

from pathlib import Path

import pytest

import glc
from glc import pretrained
from glc.codec.weights.catalog import FOLDER_VARIABLE, catalog, find
from glc.errors import WeightsError
from tests.codec.fixed_model import fixed_codec_weights


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
