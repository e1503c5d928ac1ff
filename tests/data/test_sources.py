import importlib.util
import logging
import os

import pytest

from glc.data.images import read_rgb
from glc.data.sources import list_sources, resolve, sample_paths
from glc.errors import ListingError


def test_shards_by_folder_pattern_glob_and_list(shards, monkeypatch):
    names = [str(shards / f"train-{i:06d}.tar") for i in range(3)]
    assert resolve(str(shards), "data.train").shards == names
    assert resolve(f"{shards}/train-{{000000..000002}}.tar", "data.train").shards == names
    assert resolve(f"{shards}/*.tar", "data.train").shards == names
    assert resolve([names[2], shards / "train-000000.tar"], "data.train").shards == [names[2], names[0]]
    assert resolve(f"{shards}/manifest.json", "data.train").shards == names
    monkeypatch.chdir(shards.parent)
    assert resolve("train", "data.train").shards == names


def test_urls_are_expanded_and_not_looked_for():
    found = resolve(["https://host/a-{00..02}.tar", "pipe:cat b.tar"], "data.train").shards
    assert found == [f"https://host/a-0{i}.tar" for i in range(3)] + ["pipe:cat b.tar"]


def test_images_by_folder_list_and_name(images, tmp_path):
    assert [name for name, _ in resolve(images, "data.val").images] == [f"n{i:02d}.png" for i in range(12)]
    listing = tmp_path / "val.txt"
    listing.write_text(f"{images}/n03.png\n{images}/n01.png\n")
    assert [path.name for _, path in resolve(str(listing), "data.val").images] == ["n03.png", "n01.png"]
    assert resolve(images / "n05.png", "data.val").images == [("n05.png", images / "n05.png")]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "data.train: empty"),
        ("", "data.train: empty"),
        ("{root}/nowhere", "data.train: .*nowhere: no such file or folder; make them with `glc pack"),
        ("{root}/train-{{000001..000004}}.tar", "data.train: .*train-000003.tar and 1 more: no such file"),
        ("{root}/*.tarr", "data.train: no shards match .*tarr"),
        (["{root}", "{images}"], "data.train: mixes shards with images"),
    ],
)
def test_errors_name_the_key_and_the_fix(given, message, shards, images):
    places = {"root": shards, "images": images}
    filled = given.format(**places) if isinstance(given, str) else [item.format(**places) for item in given]
    with pytest.raises(ValueError, match=message):
        resolve(filled, "data.train")


def test_empty_folder_and_unfinished_packing(tmp_path):
    with pytest.raises(ValueError, match=r"data\.val: .*contains no images.*glc pack"):
        resolve(tmp_path, "data.val")
    (tmp_path / ".packing").mkdir()
    with pytest.raises(ValueError, match=r"data\.train: .*not completely packed"):
        resolve(tmp_path, "data.train")


def test_missing_shards_are_errors_and_truncated_ones_warnings(shards, tmp_path, caplog):
    copy = tmp_path / "train"
    copy.mkdir()
    for path in shards.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    (copy / "train-000001.tar").write_bytes(b"short")
    with caplog.at_level(logging.WARNING):
        assert len(resolve(copy, "data.train").shards) == 3
    assert "train-000001.tar has 5 bytes" in caplog.text
    (copy / "train-000001.tar").unlink()
    with pytest.raises(ValueError, match=r"train-000001\.tar is missing but listed in manifest\.json"):
        resolve(copy, "data.train")


def test_split_is_fixed_and_disjoint():
    train, test = sample_paths("train"), sample_paths("test")
    assert not {path.name for path in train} & {path.name for path in test}
    assert {"motorcycle_left.png", "motorcycle_right.png"} <= {path.name for path in train}
    assert len(train) + len(test) == 9
    for path in train + test:
        image = read_rgb(path)
        assert min(image.size) >= 256, path.name


def test_missing_package_and_unknown_split_are_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None)
    with pytest.raises(FileNotFoundError, match="pip install scikit-image"):
        sample_paths("train")
    with pytest.raises(ValueError, match="train, test"):
        sample_paths("validation")


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("n03.png\r\nn01.png\r\n", "utf-8-sig"),
        ("n03.png\r\nn01.png\r\n", "utf-16"),
        ("# name\tlabel\nn03.png\tharbour\nn01.png\tquay, north\n", "utf-8"),
        ("sub\\n03.png\r\n.\\n01.png\r\n", "utf-8"),
        ("n03.png\rn01.png", "ascii"),
    ],
)
def test_lists_and_tables_from_windows(text, encoding, images, tmp_path):
    (tmp_path / "sub").symlink_to(images)
    for name in ("n01.png", "n03.png"):
        (tmp_path / name).symlink_to(images / name)
    (tmp_path / "list.txt").write_bytes(text.encode(encoding))
    assert [path.name for _, path in list_sources([tmp_path / "list.txt"])] == ["n03.png", "n01.png"]


def test_lists_with_names_that_are_not_utf8_and_files_that_are_no_lists(images, tmp_path):
    (tmp_path / os.fsdecode(b"caf\xe9\xa0.png")).symlink_to(images / "n01.png")
    (tmp_path / "tab\there.png").symlink_to(images / "n02.png")
    (tmp_path / "list.txt").write_bytes(b"caf\xe9\xa0.png\ntab\there.png\n")
    assert [path.resolve().name for _, path in list_sources([tmp_path / "list.txt"])] == [
        "n01.png",
        "n02.png",
    ]
    for name, data, message in (
        ("list.dat", b"\x89PNG\0\0", "neither an image nor a text file that lists images"),
        ("photo.cr2", b"II*\0\0", "lists images; convert raw files to TIFF with dcraw_emu"),
        ("odd.txt", b"\xff\xfea", "neither an image"),
        ("bad.txt", b"caf\xe9.png", "line 1: no such file: caf"),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ListingError, match=message):
            list_sources([tmp_path / name])
