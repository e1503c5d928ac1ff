import itertools
from collections import Counter

import pytest

from glc.data import shards as shard_module
from glc.data.images import SampleImage
from glc.data.mixture import Entry, MixedSource, Mixture
from glc.data.pack import pack
from glc.data.shards import ListSource, Record, count_images
from glc.data.stream import TrainLoader, TrainStream
from glc.errors import SettingError
from tests.data.conftest import numbered
from tests.jobs.stand_ins import write_tar

FEW, MANY = 4, 132


@pytest.fixture
def in_memory(monkeypatch):
    """Two shards of 4 and 132 images that are read at once: a-0 to a-3, b-0 to b-131."""
    sizes = {"a": FEW, "b": MANY}
    monkeypatch.setattr(
        "glc.data.shards.read_shard",
        lambda url, image: (Record(f"{url}-{i}", b"") for i in range(sizes[url])),
    )
    monkeypatch.setattr(
        "glc.data.mixture.count_images", lambda shards, image: ([sizes[s] for s in shards], False)
    )


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """The same two sets, packed."""
    folder = tmp_path_factory.mktemp("packed")
    for name, count in (("a", FEW), ("b", MANY)):
        (folder / f"{name}-images").mkdir()
        for i in range(count):
            numbered(i % 60, 8, 8).save(folder / f"{name}-images" / f"{name}{i:03d}.png")
        pack([folder / f"{name}-images"], folder / name, workers=1, progress=False)
    return folder


def mixture(shards=("a", "b"), images=(), weights=None, shuffle=0):
    entries = [*(Entry(name, shards=[name]) for name in shards), *images]
    return Mixture(entries, weights, shuffle, SampleImage())


def keys(source, count, *numbers, skip=0):
    return [record.key for record in itertools.islice(source.records(*numbers, skip=skip), count)]


def share(drawn, letter="a"):
    return sum(key.startswith(letter) for key in drawn) / len(drawn)


@pytest.mark.parametrize("shuffle", [0, 30])
def test_every_image_has_the_same_chance_at_each_place_of_an_epoch(in_memory, shuffle):
    # 0.1 drew the shards of the first image with equal chances: half of them were the four of `a`.
    source = mixture(shuffle=shuffle)
    epochs = [keys(source, 40, 0, epoch, 0, 1) for epoch in range(2000)]
    expected = FEW / (FEW + MANY)  # 2.9 %, with a standard error of 0.4 % over 2000 epochs
    for place in (0, 1, 39):
        assert abs(share([epoch[place] for epoch in epochs]) - expected) < 0.015
    counts = Counter(itertools.chain(*epochs))
    assert len(counts) == FEW + MANY
    assert max(counts.values()) < 1.5 * min(
        counts.values()
    )  # 588 each; the images of an epoch are neighbours


def test_long_epochs_keep_the_shares(in_memory):
    assert abs(share(keys(mixture(), 50_000, 3, 0, 0, 1)) - FEW / (FEW + MANY)) < 0.005


@pytest.mark.parametrize("kind", ["shards", "images", "both"])
def test_weights_are_shares_of_the_records_and_images_of_an_entry_are_equal(in_memory, kind):
    lists = [Entry(n, images=[Record(f"{n}-{i}", b"") for i in range(k)]) for n, k in (("a", 4), ("b", 132))]
    source = {
        "shards": lambda: mixture(weights=[7, 3]),
        "images": lambda: mixture((), lists, weights=[7, 3]),
        "both": lambda: mixture(("a",), lists[1:], weights=[7, 3]),
    }[kind]()
    drawn = keys(source, 20_000, 1, 0, 0, 1)
    assert abs(share(drawn) - 0.7) < 0.013  # four standard errors
    assert abs(share(drawn[:1000]) - 0.7) < 0.06
    counts = Counter(drawn)
    for letter, count, expected in (("a", FEW, 3500), ("b", MANY, 6000 / MANY)):
        of_entry = [counts[f"{letter}-{i}"] for i in range(count)]
        assert max(of_entry) < expected * 1.1 + 3
        assert min(of_entry) > expected * 0.9 - 3
    assert source.describe().endswith(": a 70.0%, b 30.0%")


def test_a_weighted_stream_resumes_at_any_place_and_differs_between_consumers(in_memory):
    lists = [Entry("c", images=[Record(f"c-{i}", b"") for i in range(10)])]
    source = mixture(("a", "b"), lists, weights=[1, 2, 3], shuffle=9)
    whole = keys(source, 1500, 5, 1, 2, 4)
    for skip in (1, 100, 1030):  # choices are drawn in blocks of 1024
        assert keys(source, 300, 5, 1, 2, 4, skip=skip) == whole[skip : skip + 300]
    assert keys(mixture(("a", "b"), lists, weights=[1, 2, 3], shuffle=9), 1500, 5, 1, 2, 4) == whole
    for other in [(6, 1, 2, 4), (5, 2, 2, 4), (5, 1, 1, 4), (5, 1, 2, 5)]:
        assert keys(source, 300, *other) != whole[:300]


def test_runs_of_0_1_continue_with_the_same_images(shards):
    # Recorded with 0.1, which had no `random_start` in its states.
    urls = [str(path) for path in sorted(shards.glob("*.tar"))]
    for shuffle, expected in (
        (0, [8, 9, 10, 11, 8, 9, 10, 11, 0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3, 4, 5, 6, 7]),
        (6, [8, 10, 11, 10, 9, 8, 1, 2, 0, 4, 6, 11, 7, 3, 5, 9, 0, 2, 7, 4, 6, 5, 5, 6]),
    ):
        for names in (urls, [f"pipe:cat {url}" for url in urls]):
            source = Mixture([Entry("shards", shards=names)], None, shuffle, SampleImage())
            loader = TrainLoader(TrainStream(source, crop=8, batch_size=1, epoch_batches=9))
            assert loader.state_dict()["random_start"] == (names == urls)
            loader.load_state_dict({"epoch": 2, "batch": 0})
            assert loader.state_dict()["random_start"] is False
            assert [int(key[-2:]) for key in keys(source, 24, 7, 2, 1, 3)] == expected


def test_a_run_whose_numbers_of_images_are_no_longer_known_says_so(in_memory, monkeypatch, caplog):
    def loader():
        return TrainLoader(TrainStream(mixture(), crop=8, batch_size=1, epoch_batches=9))

    state = loader().state_dict()
    loader().load_state_dict(state)
    assert not caplog.text
    monkeypatch.setattr("glc.data.mixture.count_images", lambda shards, image: ([None] * len(shards), False))
    loader().load_state_dict(state)
    assert "random_start was True, is False" in caplog.text


def test_images_without_weights_go_round_without_repeats():
    lists = [Entry(n, images=[Record(f"{n}-{i}", b"") for i in range(k)]) for n, k in (("a", 2), ("b", 5))]
    source = mixture((), lists)
    assert len(set(keys(source, 7, 0, 0, 0, 1))) == 7
    assert source.describe() == "7 training images: a 28.6%, b 71.4%"


def test_shards_and_images_mix_by_their_numbers(in_memory):
    source = mixture(("b",), [Entry("c", images=[Record(f"c-{i}", b"") for i in range(44)])])
    assert abs(share(keys(source, 10_000, 0, 0, 0, 1), "c") - 0.25) < 0.02
    assert source.describe() == "1 training shards (132 images) and 44 training images: b 75.0%, c 25.0%"


def test_numbers_of_images_come_from_the_manifest_or_the_headers(packed, tmp_path):
    shards = [str(packed / name / f"{name}-000000.tar") for name in "ab"]
    remote = [f"file://{shards[1]}", f"pipe:cat {shards[0]}", f"file://{tmp_path}/missing/a.tar"]
    assert count_images([*shards, *remote], SampleImage()) == ([FEW, MANY, MANY, None, None], False)
    content = (packed / "b" / "b-000000.tar").read_bytes()
    (tmp_path / "plain.tar").write_bytes(content)
    (tmp_path / "cut.tar").write_bytes(content[: len(content) // 2])
    (whole, cut), _ = count_images([str(tmp_path / "plain.tar"), str(tmp_path / "cut.tar")], SampleImage())
    assert whole == MANY
    assert 60 < cut < 70
    # A manifest beside a shard of another size is not believed.
    (tmp_path / "manifest.json").write_bytes((packed / "b" / "manifest.json").read_bytes())
    (tmp_path / "b-000000.tar").write_bytes((packed / "a" / "a-000000.tar").read_bytes())
    assert count_images([str(tmp_path / "b-000000.tar")], SampleImage()) == ([FEW], False)


def test_numbers_of_many_unrecorded_shards_are_estimated_by_their_bytes(packed, tmp_path, monkeypatch):
    monkeypatch.setattr("glc.data.shards._COUNTED", 3)
    contents = [(packed / name / f"{name}-000000.tar").read_bytes() for name in "ab"]
    for i in range(8):
        (tmp_path / f"{i}.tar").write_bytes(contents[i % 2])
    names = [str(tmp_path / f"{i}.tar") for i in range(8)]
    opened = []
    index = shard_module._index_local
    monkeypatch.setattr("glc.data.shards._index_local", lambda p, image: opened.append(p) or index(p, image))
    counts, estimated = count_images(names, SampleImage())
    assert estimated
    assert sorted(opened) == [names[i] for i in (0, 3, 6)]
    assert [counts[i] for i in (0, 3, 6)] == [FEW, MANY, FEW]
    assert counts[1] == counts[5] == counts[7]
    assert abs(counts[1] - MANY) < 10
    assert 1 <= counts[2] <= 8
    source = Mixture([Entry("many", shards=names)], None, 0, SampleImage())
    assert source.describe() == f"8 training shards (about {sum(counts)} images)"
    opened.clear()
    assert count_images(names[:3], SampleImage()) == ([FEW, MANY, FEW], False)


def test_the_last_images_of_equal_shards_come_in_short_epochs(in_memory):
    # With several consumers an epoch is often shorter than a shard; 0.1 read the first images only.
    source = mixture(("b", "b"))
    drawn = Counter(int(key[2:]) for epoch in range(3000) for key in keys(source, 5, 0, epoch, 1, 4))
    assert len(drawn) == MANY
    assert max(drawn.values()) < 1.5 * 3000 * 5 / MANY
    assert min(drawn.values()) > 0.6 * 3000 * 5 / MANY


def test_unknown_numbers_are_said_and_count_as_the_mean(packed, caplog):
    urls = [f"pipe:cat {packed}/a/a-000000.tar", str(packed / "b")]
    entries = [Entry("URL", shards=urls[:1]), Entry("b", shards=[f"{urls[1]}/b-000000.tar"])]
    with caplog.at_level("INFO"):
        source = Mixture(entries, None, 0, SampleImage())
    assert "number of images of URL is not known" in caplog.text
    assert source.describe() == "2 training shards"
    assert set("ab") == {key[9] for key in keys(source, 300, 0, 0, 0, 1)}
    mixed = [Entry("URL", shards=urls[:1]), Entry("c", images=[Record("c", b"")])]
    with pytest.raises(
        SettingError, match=r"^data\.train: a mixture .* of URL is not known; .*data\.weights="
    ):
        Mixture(mixed, None, 0, SampleImage())


def test_an_entry_without_images_is_refused():
    with pytest.raises(SettingError, match=r"^data\.train: c has no readable image; check the files"):
        mixture((), [Entry("c"), Entry("d", images=[Record("d", b"")])])


def test_a_mixture_of_lists_is_the_lists_own_sequences():
    lists = [ListSource([Record(f"{n}-{i}", b"") for i in range(3)]) for n in "ab"]
    drawn = keys(MixedSource(lists, [1, 1]), 60, 0, 0, 0, 1)
    for letter in "ab":
        own = [key for key in drawn if key[0] == letter]
        assert all(len(set(own[i : i + 3])) == 3 for i in range(0, len(own) - 2, 3))


@pytest.fixture
def masked(images, tmp_path):
    """Two shards of samples with an image and a mask; the second has no masks."""
    read = [(images / f"n{i:02d}.png").read_bytes() for i in range(12)]
    for shard in range(2):
        members = []
        for i in range(3 * shard, 3 * shard + 3):
            members += [(f"{i}.png", read[i]), (f"{i}.txt", b"text")]
            members += [] if shard else [(f"{i}.mask.PNG", read[i + 6])]
        write_tar(tmp_path / f"m-{shard}.tar", members)
    return [str(tmp_path / f"m-{shard}.tar") for shard in range(2)]


def test_the_named_file_of_each_sample_is_used_and_its_lack_is_said(masked, caplog):
    source = Mixture([Entry("m", shards=masked)], None, 0, SampleImage("mask.png"))
    assert "data.member=mask.png: no such file in 1 shards" in caplog.text
    assert "m-1.tar has png, txt" in caplog.text
    records = list(itertools.islice(source.records(0, 0, 0, 1), 3))
    assert {r.decode().getpixel((0, 0))[0] // 4 - int(r.key) for r in records} == {6}
    with pytest.raises(
        SettingError, match=r"^data\.member=jpg: no sample of m .*m-0\.tar has png, txt, mask"
    ):
        Mixture([Entry("m", shards=masked)], None, 0, SampleImage("jpg"))


def test_several_images_in_a_sample_are_said_once(masked, caplog):
    image = SampleImage()
    source = Mixture([Entry("m", shards=masked)], None, 0, image)
    drawn = list(itertools.islice(source.records(0, 0, 0, 1), 20))
    assert {r.decode().getpixel((0, 0))[0] // 4 - int(r.key) for r in drawn} == {0}
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.partition("m-0.tar: 0: ")[2] == (
        "a sample has 2 images (png, mask.png), and png is used; set data.member=mask.png or another of them"
    )
