"""Packing images into shards: what is in them, and that an interrupted run ends with the same bytes."""

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from glc.data import pack as pack_module
from glc.data.pack import pack
from glc.data.shard_writer import Entry, Manifest, PackError, read_manifest
from glc.errors import ListingError
from glc.jobs.manifest import JobError
from tests.oddities import CHART, P3, SRGB, decode_srgb, from_linear, jpeg, rgb_profile


def image(seed: int, width: int = 24, height: int = 16) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    source = tmp_path / "images"
    (source / "sub").mkdir(parents=True)
    for seed in range(5):
        image(seed).save(source / f"p{seed}.jpg", quality=80)
    for seed in range(5, 7):
        image(seed).save(source / "sub" / f"p{seed}.png")
    return source


def samples(dest: Path) -> list[tuple[str, str, bytes, dict[str, Any]]]:
    """All samples of a packed set in order: (key, ending, image's bytes, note)."""
    found = []
    for shard in sorted(dest.glob("*.tar")):
        with tarfile.open(shard) as tar:
            members = [(member.name, tar.extractfile(member).read()) for member in tar]
        for (image_name, data), (note_name, note) in zip(members[::2], members[1::2], strict=True):
            key, ending = image_name.split(".")
            assert note_name == f"{key}.json"
            found.append((key, ending, data, json.loads(note)))
    return found


def shard_bytes(dest: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(dest.iterdir()) if path.is_file()}


def run(source: Path, dest: Path, workers: int = 1, **options: Any) -> Manifest:
    return pack([source], dest, workers=workers, progress=False, **options)


def test_shards_hold_every_image_once_and_the_manifest_describes_them(folder: Path, tmp_path: Path) -> None:
    manifest = run(folder, tmp_path / "train", images_per_shard=3)
    found = samples(tmp_path / "train")
    names = [f"p{i}.jpg" for i in range(5)] + ["sub/p5.png", "sub/p6.png"]
    assert sorted(note["name"] for *_, note in found) == names
    assert len({key for key, *_ in found}) == 7
    assert [shard.name for shard in manifest.shards] == [f"train-{i:06d}.tar" for i in range(3)]
    assert [shard.count for shard in manifest.shards] == [3, 3, 1]
    for shard in manifest.shards:
        data = (tmp_path / "train" / shard.name).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (shard.bytes, shard.sha256)
    assert read_manifest(tmp_path / "train") == manifest
    totals = json.loads((tmp_path / "train" / "manifest.json").read_text())["totals"]
    assert totals == {"shards": 3, "count": 7, "bytes": manifest.bytes, "skipped": 0}
    assert sorted(p.name for p in (tmp_path / "train").iterdir())[0] == "manifest.json"  # no leftovers
    # A complete set is not written again.
    before = [path.stat() for path in (tmp_path / "train").iterdir()]
    run(folder, tmp_path / "train", images_per_shard=3)
    assert [path.stat().st_mtime_ns for path in (tmp_path / "train").iterdir()] == [
        stat.st_mtime_ns for stat in before
    ]


def test_plain_jpeg_keeps_its_bytes_and_png_its_pixels(folder: Path, tmp_path: Path) -> None:
    run(folder, tmp_path / "set")
    for _, ending, data, note in samples(tmp_path / "set"):
        source = folder / note["name"]
        if ending == "jpg":
            assert data == source.read_bytes()
        else:
            assert Image.open(io.BytesIO(data)).tobytes() == Image.open(source).tobytes()
        assert (note["width"], note["height"]) == (24, 16)


def test_other_images_are_reencoded_as_upright_rgb(tmp_path: Path) -> None:
    source = tmp_path / "odd"
    source.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    image(0).save(source / "turned.jpg", exif=exif, quality=95)
    image(1).convert("L").save(source / "grey.jpg")
    image(2).convert("CMYK").save(source / "cmyk.jpg")
    image(3).convert("P").save(source / "palette.png")
    image(4).save(source / "web.webp")
    run(source, tmp_path / "set")
    endings = {}
    for _, ending, data, note in samples(tmp_path / "set"):
        stored, name = Image.open(io.BytesIO(data)), note["name"]
        endings[name] = ending
        assert stored.mode == "RGB"
        assert stored.size == (note["width"], note["height"])
        assert stored.size == ((16, 24) if name == "turned.jpg" else (24, 16))
        assert not stored.getexif()
    jpegs = dict.fromkeys(("turned.jpg", "grey.jpg", "cmyk.jpg", "web.webp"), "jpg")
    assert endings == {**jpegs, "palette.png": "png"}


def test_resizing_shrinks_the_short_side_and_never_enlarges(tmp_path: Path) -> None:
    source = tmp_path / "sizes"
    source.mkdir()
    image(0, 100, 60).save(source / "large.jpg")
    image(1, 60, 101).save(source / "tall.png")
    image(2, 24, 16).save(source / "small.jpg")
    run(source, tmp_path / "set", size=30)
    stored = {note["name"]: (note["width"], note["height"]) for *_, note in samples(tmp_path / "set")}
    # 101 * 30 / 60 = 50.5 rounds to the even 50
    assert stored == {"large.jpg": (50, 30), "tall.png": (30, 50), "small.jpg": (24, 16)}


def test_bad_images_are_skipped_with_name_and_reason(folder: Path, tmp_path: Path) -> None:
    image(9, 8, 40).save(folder / "narrow.png")
    (folder / "broken.jpg").write_bytes((folder / "p0.jpg").read_bytes()[:-40])
    (folder / "fake.png").write_bytes(b"no image")
    manifest = run(folder, tmp_path / "set", min_side=10)
    reasons = {entry["name"]: entry["reason"] for entry in manifest.skipped}
    assert reasons.keys() == {"narrow.png", "broken.jpg", "fake.png"}
    assert "below 10" in reasons["narrow.png"]
    assert "truncated" in reasons["broken.jpg"]
    assert manifest.count == 7


def test_workers_do_not_change_the_bytes(folder: Path, tmp_path: Path) -> None:
    run(folder, tmp_path / "a" / "set", images_per_shard=2)
    run(folder, tmp_path / "b" / "set", images_per_shard=2, workers=2)
    assert shard_bytes(tmp_path / "a" / "set") == shard_bytes(tmp_path / "b" / "set")


def interrupt_at(monkeypatch: pytest.MonkeyPatch, count: int) -> list[str]:
    """Interrupt packing after so many images; the names of those that were encoded until then."""
    names: list[str] = []
    encode: Callable[..., Any] = pack_module.encode_sample

    def encode_some(entry: Entry, *rest: Any) -> Any:
        if len(names) == count:
            raise KeyboardInterrupt
        names.append(entry.name)
        return encode(entry, *rest)

    monkeypatch.setattr(pack_module, "encode_sample", encode_some)
    return names


@pytest.mark.parametrize("count", [0, 3, 4, 6])
def test_an_interrupted_run_resumes_and_ends_with_the_same_bytes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    run(folder, tmp_path / "whole" / "set", images_per_shard=2)
    dest = tmp_path / "cut" / "set"
    with monkeypatch.context() as patch:
        before = interrupt_at(patch, count)
        with pytest.raises(KeyboardInterrupt):
            run(folder, dest, images_per_shard=2)
    assert not (dest / "manifest.json").exists()
    with monkeypatch.context() as patch:
        after = interrupt_at(patch, -1)
        run(folder, dest, images_per_shard=2)
    assert len({*before, *after}) == 7
    assert len(after) == 7 - count // 2 * 2  # finished shards are kept
    assert shard_bytes(dest) == shard_bytes(tmp_path / "whole" / "set")
    assert not [path for path in dest.iterdir() if path.is_dir()]


def test_other_settings_for_an_unfinished_set_are_refused_unless_forced(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupt_at(patch, 5)
        with pytest.raises(KeyboardInterrupt):
            run(folder, tmp_path / "set", images_per_shard=1)
    with pytest.raises(JobError, match=r"images_per_shard was 1, is 4.*--force"):
        run(folder, tmp_path / "set", images_per_shard=4)
    run(folder, tmp_path / "set", images_per_shard=4, force=True)
    assert sorted(shard_bytes(tmp_path / "set")) == ["manifest.json", "set-000000.tar", "set-000001.tar"]


def test_finished_shard_that_was_damaged_is_written_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dest = tmp_path / "set"
    with monkeypatch.context() as patch:
        patch.setattr(pack_module, "Manifest", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(folder, dest, images_per_shard=4)
    damaged = dest / "set-000001.tar"
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:100])
    run(folder, dest, images_per_shard=4)
    assert damaged.read_bytes() == whole


def test_command_that_finishes_second_returns_the_set(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other_command_is_faster(*_: Any, **__: Any) -> None:
        monkeypatch.undo()
        run(folder, tmp_path / "train", images_per_shard=3)
        raise FileNotFoundError("train-000000.tar.json")  # state that the other command removed

    monkeypatch.setattr(pack_module, "run", other_command_is_faster)
    manifest = run(folder, tmp_path / "train", images_per_shard=3)
    assert manifest == read_manifest(tmp_path / "train")
    assert manifest.count == 7


def test_other_settings_or_images_are_refused_unless_forced(folder: Path, tmp_path: Path) -> None:
    dest = tmp_path / "set"
    run(folder, dest, images_per_shard=2)
    before = shard_bytes(dest)
    with pytest.raises(PackError, match="images_per_shard was 2, is 4"):
        run(folder, dest, images_per_shard=4)
    image(99, 40, 40).save(folder / "p0.jpg")
    with pytest.raises(PackError, match="the source images changed"):
        run(folder, dest, images_per_shard=2)
    assert shard_bytes(dest) == before
    (dest / "set-notes.tar").write_bytes(b"not ours")
    manifest = run(folder, dest, images_per_shard=4, force=True)
    assert sorted(p.name for p in dest.glob("*.tar")) == ["set-000000.tar", "set-000001.tar", "set-notes.tar"]
    assert len(manifest.shards) == 2


def test_foreign_shards_are_not_overwritten(folder: Path, tmp_path: Path) -> None:
    dest = tmp_path / "set"
    dest.mkdir()
    (dest / "set-000000.tar").write_bytes(b"precious")
    with pytest.raises(PackError, match="without a manifest"):
        run(folder, dest)
    assert (dest / "set-000000.tar").read_bytes() == b"precious"


def test_same_relative_names_do_not_collide(tmp_path: Path) -> None:
    sources = []
    for i, parent in enumerate(["left/cats", "right/cats"]):
        source = tmp_path / parent
        source.mkdir(parents=True)
        image(i).save(source / "one.png")
        sources.append(source)
    pack(sources, tmp_path / "set", workers=1, progress=False)
    found = samples(tmp_path / "set")
    assert len({key for key, *_ in found}) == 2
    assert len({data for _, _, data, _ in found}) == 2
    assert [note["name"] for *_, note in found] == ["cats/one.png", "cats/one.png"]


def test_list_file_in_its_order(folder: Path, tmp_path: Path) -> None:
    listing = folder / "list.txt"
    listing.write_text(f"# chosen\nsub/p6.png\n\np1.jpg\n{folder / 'p3.jpg'}\n")
    run(listing, tmp_path / "set", mix=False)
    assert [note["name"] for *_, note in samples(tmp_path / "set")] == ["sub/p6.png", "p1.jpg", "p3.jpg"]
    listing.write_text("p1.jpg\nmissing.jpg\n")
    with pytest.raises(ListingError, match=r"list\.txt, line 2.*missing\.jpg"):
        run(listing, tmp_path / "other")


def test_mixed_order_separates_neighbours_and_is_the_default(folder: Path, tmp_path: Path) -> None:
    for i in range(30):
        image(100 + i).save(folder / f"q{i:02d}.png")
    run(folder, tmp_path / "mixed")
    run(folder, tmp_path / "kept", mix=False)
    kept = [note["name"] for *_, note in samples(tmp_path / "kept")]
    mixed = [note["name"] for *_, note in samples(tmp_path / "mixed")]
    assert kept == sorted(kept)
    assert mixed != kept
    assert sorted(mixed) == kept


def test_empty_and_unreadable_sources_are_refused(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ListingError, match="empty: contains no images"):
        run(empty, tmp_path / "set")
    assert not (tmp_path / "set").exists()
    (empty / "bad.png").write_bytes(b"x")
    with pytest.raises(PackError, match=r"none of 1 .*bad\.png"):
        run(empty, tmp_path / "set")
    assert not list((tmp_path / "set").iterdir())
    with pytest.raises(PackError, match="images_per_shard=0"):
        run(empty, tmp_path / "set", images_per_shard=0)


def test_shards_hold_srgb(tmp_path: Path) -> None:
    """A JPEG with another profile is stored like one that is turned; one with sRGB's keeps its bytes."""
    source = tmp_path / "images"
    source.mkdir()
    (source / "a.jpg").write_bytes(jpeg(CHART, icc_profile=rgb_profile(P3, None)))
    (source / "b.jpg").write_bytes(jpeg(CHART, icc_profile=rgb_profile(SRGB, None)))
    pack([source], tmp_path / "packed", mix=False, workers=1, progress=False)
    first, second = samples(tmp_path / "packed")
    assert first[3]["treatment"] == ["ICC profile made by hand converted to sRGB"]
    stored = Image.open(io.BytesIO(first[2]))
    assert "icc_profile" not in stored.info
    assert np.abs(np.asarray(stored, float) - from_linear(decode_srgb(CHART / 255), P3)).mean() < 1
    assert second[2] == (source / "b.jpg").read_bytes()
    assert second[3].keys() == {"name", "width", "height"}


def test_background(tmp_path: Path) -> None:
    source = tmp_path / "images"
    source.mkdir()
    Image.new("RGBA", (8, 8), (9, 9, 9, 0)).save(source / "a.png")
    white = pack([source], tmp_path / "white", workers=1, progress=False)
    assert "background" not in white.settings  # as in sets that were packed before there was a choice
    teal = pack([source], tmp_path / "teal", background="#008080", workers=1, progress=False)
    assert teal.settings["background"] == "#008080"
    for name, levels in (("white", (255, 255, 255)), ("teal", (0, 128, 128))):
        (sample,) = samples(tmp_path / name)
        assert Image.open(io.BytesIO(sample[2])).getpixel((0, 0)) == levels
    with pytest.raises(PackError, match="background: not a colour: teel; use a name or #rrggbb"):
        pack([source], tmp_path / "other", background="teel")


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    source = tmp_path / "images"
    source.mkdir()
    names = [os.fsdecode(name) for name in (b"bad\xff.png", b"caf\xe9.png")]
    (source / names[0]).write_bytes(b"nothing")
    image(0).save(source / names[1])
    first = pack([source], tmp_path / "packed", workers=1, progress=False)
    before = (tmp_path / "packed" / "manifest.json").read_bytes()
    again = pack([source], tmp_path / "packed", workers=1, progress=False)
    assert again == first == read_manifest(tmp_path / "packed")
    assert (tmp_path / "packed" / "manifest.json").read_bytes() == before
    assert b"bad\\udcff.png" in before
    assert [skipped["name"] for skipped in first.skipped] == names[:1]
    assert [note["name"] for _, _, _, note in samples(tmp_path / "packed")] == names[1:]
