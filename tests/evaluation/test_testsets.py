"""Which images a set has, and how they are prepared."""

from pathlib import Path

import fsspec
import numpy as np
import pytest
from PIL import Image

from glc.data.images import ImageError
from glc.evaluation.testsets import ImageSet, SetError, ShardSet, are_shards, open_testset
from tests.jobs.stand_ins import write_tar


def write(path: Path, width: int = 8, height: int = 6) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), (width, height, 0)).save(path)
    return path


def test_names_are_paths_without_suffix_unless_ambiguous(
    tmp_path: Path,
) -> None:
    for name in ("b.png", "a.png", "c/a.png", "a.jpg", ".hidden.png"):
        write(tmp_path / name)
    (tmp_path / "notes.txt").write_text("none")
    found = ImageSet(tmp_path).images
    assert [image.name for image in found] == ["a.jpg", "a.png", "b", "c/a"]
    assert found[3].path == tmp_path / "c" / "a.png"
    write(tmp_path / "a.png.bmp")  # without its suffix it would be another's name
    names = [image.name for image in ImageSet(tmp_path).images]
    assert names == ["a.jpg", "a.png", "a.png.bmp", "b.png", "c/a.png"]


def test_missing_and_empty_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SetError, match="no such folder; get kodak from https://x"):
        ImageSet(tmp_path / "no", name="kodak", source="https://x")
    with pytest.raises(SetError, match="contains no images"):
        ImageSet(tmp_path)


def test_missing_images_are_named_and_unknown_ones_refused(tmp_path: Path) -> None:
    for k in (1, 2, 4):
        write(tmp_path / f"kodim{k:02d}.png")
    known = {"name": "kodak", "count": 4, "pattern": "kodim{:02d}"}
    assert ImageSet(tmp_path, **known).missing == [("kodim03", f"missing: not in {tmp_path}")]
    assert ImageSet(tmp_path, count=3).missing == []
    ((name, reason),) = ImageSet(tmp_path, name="clic", count=428).missing
    assert name == "425 unnamed"
    assert "has 3 of the 428 images of clic" in reason
    with pytest.raises(SetError, match="contains 3 images, but kodak has 2"):
        ImageSet(tmp_path, name="kodak", count=2)
    write(tmp_path / "other.png")
    with pytest.raises(SetError, match="other does not belong to kodak, whose images are kodim01 to kodim04"):
        ImageSet(tmp_path, **known)


def test_images_are_scaled_and_centre_cropped(tmp_path: Path) -> None:
    pixels = np.zeros((40, 80, 3), dtype=np.uint8)
    pixels[:, 20:60] = 200  # the middle half
    Image.fromarray(pixels).save(tmp_path / "a.png")
    prepared = ImageSet(tmp_path, resize=20, center_crop=20, sizes=[[20, 20]])
    image = np.asarray(prepared.read(prepared.images[0]))
    assert image.shape == (20, 20, 3)
    assert (image[:, 3:-3] == 200).all()
    whole = ImageSet(tmp_path)
    np.testing.assert_array_equal(np.asarray(whole.read(whole.images[0])), pixels)
    large = ImageSet(tmp_path, center_crop=50)
    with pytest.raises(ImageError, match=r"a\.png: 80x40 pixels, below the crop of 50"):
        large.read(large.images[0])
    wrong = ImageSet(tmp_path, name="kodak", sizes=[[768, 512], [512, 768]])
    with pytest.raises(ImageError, match="80x40 pixels, images of kodak have 768x512 or 512x768"):
        wrong.read(wrong.images[0])


def test_a_sample_depends_only_on_names_and_seed(tmp_path: Path) -> None:
    for k in range(20):
        write(tmp_path / f"{k:02d}.png")

    def drawn(limit: int, seed: int = 0) -> list[str]:
        return [image.name for image in ImageSet(tmp_path, limit=limit, seed=seed).images]

    few = drawn(5)
    assert len(few) == 5
    assert few == sorted(few)
    assert set(few) < set(drawn(9))
    assert few != drawn(5, seed=1)
    assert drawn(30) == [f"{k:02d}" for k in range(20)]
    with pytest.raises(SetError, match=r"testset\.limit=0"):
        drawn(0)


def test_hashes_depend_on_the_content(tmp_path: Path) -> None:
    for name, width in (("a", 8), ("b", 8), ("c", 9)):
        write(tmp_path / f"{name}.png", width)
    hashes = ImageSet(tmp_path).hashes()
    assert hashes["a"] == hashes["b"] != hashes["c"]


def test_a_path_names_a_folder_or_shards(tmp_path: Path) -> None:
    write(tmp_path / "images" / "a.png")
    write_tar(tmp_path / "images" / "notes.tar", [])
    shard = write_tar(tmp_path / "shards" / "val-0.tar", [("a.txt", b""), ("b.png", b"not read yet")])
    for path in (shard.parent, shard, [str(shard)], f"{tmp_path}/shards/val-{{0..1}}.tar"):
        assert are_shards(str(path) if isinstance(path, Path) else path)
    # A folder is one of shards only when it has no images.
    for other in (tmp_path / "images", tmp_path / "none", None):
        assert not are_shards(other)
    options = {"name": "folder", "pattern": None, "first": 1, "limit": None, "seed": 0}
    assert isinstance(open_testset(tmp_path / "images", **options), ImageSet)
    found = open_testset(str(shard), **options, center_crop=32, count=7)
    assert isinstance(found, ShardSet)
    assert (found.name, found.count, found.missing) == ("shards", 7, [])
    assert [found.path for found in found.shards] == [str(shard)]
    assert found.preprocess.as_dict() == {"resize": None, "center_crop": 32}
    assert open_testset(str(shard), name="mine").name == "mine"
    for key, value in (("limit", 3), ("pattern", "kodim{:02d}")):
        with pytest.raises(SetError, match=rf"testset\.{key}: only applies to folders"):
            open_testset(str(shard), **{key: value})
    assert open_testset([str(shard)], member="mask.png").member == "mask.png"
    with pytest.raises(SetError, match=r"testset\.member: only applies to shards"):
        open_testset(tmp_path / "images", member="jpg")
    with pytest.raises(SetError, match="none of 2 shards exists"):
        ShardSet("missing-{0..1}.tar")


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "empty"), (b"junk" * 1000, "invalid header|not a tar"), (b"\0" * 10240, "contains no image")],
)
def test_shards_that_cannot_be_read_are_refused(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "val-0.tar").write_bytes(content)
    with pytest.raises(SetError, match=rf"^testset\.path: .*val-0\.tar: .*({message})"):
        open_testset(str(tmp_path / "val-0.tar"))
    write_tar(tmp_path / "val-1.tar", [("b.png", b"not read yet")])
    assert len(open_testset(f"{tmp_path}/val-*.tar").shards) == 2


def test_urls_are_shards_and_a_dead_store_is_one_line() -> None:
    with fsspec.open("memory://set/a.tar", "wb") as file:
        file.write(bytes(10240))
    assert [shard.path for shard in open_testset("memory://set/a.tar").shards] == ["memory://set/a.tar"]
    with pytest.raises(SetError, match="none of 1 shards exists"):
        open_testset("memory://set/b.tar")
    with pytest.raises(OSError, match=r"^nosuch://a\.tar: [^\n]*$"):
        open_testset("nosuch://a.tar")
