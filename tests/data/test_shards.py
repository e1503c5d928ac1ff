import itertools
import logging
import tarfile
from pathlib import Path

import pytest

from glc.data.images import read_rgb
from glc.data.pack import pack
from glc.data.shards import ListSource, Record, ShardSource, index_shards, read_shard


def keys(source, count, *numbers, **options):
    return [record.key for record in itertools.islice(source.records(*numbers, **options), count)]


def urls(folder):
    return [str(path) for path in sorted(folder.glob("*.tar"))]


def test_a_shard_is_read_in_order_with_its_images_bytes(shards, images):
    records = list(read_shard(urls(shards)[1]))
    assert [record.key for record in records] == [f"{i:08d}-n{i:02d}" for i in range(4, 8)]
    assert records[2].decode().tobytes() == read_rgb(images / "n06.png").tobytes()
    assert records[2].where == urls(shards)[1]


def test_shards_by_url(shards):
    name = urls(shards)[0]
    for url in (f"file://{name}", f"pipe:cat {name}"):
        assert [r.key for r in read_shard(url)] == [r.key for r in read_shard(name)]
        assert [r.key for r in index_shards([url], limit=3)] == [r.key for r in read_shard(name)][:3]


def test_foreign_shards_with_dotted_names_and_without_notes(images, tmp_path):
    with tarfile.open(tmp_path / "other.tar", "w") as tar:
        tar.add(images / "n00.png", "class/a.seg.PNG")
        tar.add(images / "n01.png", "class/b.png")
    assert [r.key for r in read_shard(str(tmp_path / "other.tar"))] == ["class/a", "class/b"]


def cut_in_third_image(shards, tmp_path):
    with tarfile.open(urls(shards)[0]) as tar:
        third = [member for member in tar if member.name.endswith(".png")][2]
    (tmp_path / "cut.tar").write_bytes(Path(urls(shards)[0]).read_bytes()[: third.offset_data + 10])
    return tmp_path / "cut.tar"


@pytest.mark.parametrize("shuffle", [0, 6])
def test_shard_stream_depends_only_on_its_numbers(shards, shuffle):
    source = ShardSource(urls(shards), shuffle)
    base = keys(source, 40, 7, 0, 0, 2)
    assert keys(ShardSource(urls(shards), shuffle), 40, 7, 0, 0, 2) == base
    for other in [(8, 0, 0, 2), (7, 1, 0, 2), (7, 0, 1, 2), (7, 0, 0, 3)]:
        assert keys(source, 40, *other) != base
    assert keys(source, 23, 7, 0, 0, 2, skip=17) == base[17:]
    assert len(set(keys(source, 200, 7, 0, 0, 2))) == 12


def test_buffer_mixes_images_of_different_shards(shards):
    def shard_changes(shuffle):
        drawn = [int(key[:8]) // 4 for key in keys(ShardSource(urls(shards), shuffle), 200, 0, 0, 0, 1)]
        return sum(a != b for a, b in itertools.pairwise(drawn))

    assert shard_changes(50) > 1.5 * shard_changes(0)


def test_more_consumers_than_shards(shards):
    source = ShardSource(urls(shards)[:1], 4)
    drawn = [keys(source, 8, 0, 0, consumer, 6) for consumer in range(6)]
    assert len({tuple(sequence) for sequence in drawn}) == 6


def test_truncated_shard_is_named_once_and_skipped(shards, tmp_path, caplog):
    names, cut = urls(shards), cut_in_third_image(shards, tmp_path)
    with caplog.at_level(logging.WARNING):
        drawn = keys(ShardSource([str(cut), names[1]], 0), 100, 0, 0, 0, 1)
    assert {key[-3:] for key in drawn} >= {"n00", "n04", "n05", "n06", "n07"}
    assert not {key[-3:] for key in drawn} & {"n02", "n03"}
    assert caplog.text.count("cut.tar is missing, truncated or corrupt") == 1


def test_shards_without_any_image_end_in_an_error(tmp_path):
    (tmp_path / "junk.tar").write_bytes(b"junk" * 1000)
    with pytest.raises(RuntimeError, match=r"contain no readable image.*junk\.tar"):
        keys(ShardSource([str(tmp_path / "junk.tar")], 0), 1, 0, 0, 0, 1)


def test_list_is_divided_without_repeats_in_each_pass():
    source = ListSource([Record(str(i), b"") for i in range(10)])
    dealt = [keys(source, 10, 3, 0, consumer, 4) for consumer in range(4)]
    merged = [key for turn in zip(*dealt, strict=True) for key in turn]
    for start in range(0, 40, 10):
        assert sorted(merged[start : start + 10]) == [str(i) for i in range(10)]
    assert merged[:10] != merged[10:20]
    assert keys(source, 10, 3, 1, 0, 4) != dealt[0]
    assert keys(source, 4, 3, 0, 2, 4, skip=6) == dealt[2][6:]
    # A list may be shorter than the number of consumers.
    short = ListSource([Record("a", b""), Record("b", b"")])
    assert set(keys(short, 6, 0, 0, 7, 8)) <= {"a", "b"}


def test_index_keeps_the_order_and_stops_at_the_limit(shards, images):
    records = index_shards(urls(shards))
    assert [record.key[-3:] for record in records] == [f"n{i:02d}" for i in range(12)]
    assert records[9].decode().tobytes() == read_rgb(images / "n09.png").tobytes()
    assert len(index_shards(urls(shards), limit=5)) == 5


def test_index_of_a_truncated_shard_lists_complete_images(shards, tmp_path, caplog):
    records = index_shards([str(cut_in_third_image(shards, tmp_path))])
    assert [record.key[-3:] for record in records] == ["n00", "n01"]
    assert "cut.tar" in caplog.text


def test_packed_bad_name_still_has_a_key(tmp_path, images):
    source = tmp_path / "in"
    source.mkdir()
    (source / "…. weird näme.v2.png").write_bytes((images / "n00.png").read_bytes())
    pack([source], tmp_path / "out", workers=1, progress=False)
    (record,) = read_shard(str(tmp_path / "out" / "out-000000.tar"))
    assert record.key.startswith("00000000-")
    assert "." not in record.key
