"""Hugging Face data sets on disk, written by the test; nothing is downloaded."""

import itertools
import sys

import pytest
import torch
from hydra.utils import instantiate
from PIL import Image

from glc.data.hugging_face import HuggingFaceImages, StreamedImages
from glc.data.images import read_rgb
from glc.data.module import ImageDataModule
from tests.data.test_module import compose_train, keys

datasets = pytest.importorskip("datasets")


@pytest.fixture(scope="module")
def table(images, tmp_path_factory):
    """A folder with train.parquet (twelve rows), test.parquet (three), and the same set by `save_to_disk`."""
    folder = tmp_path_factory.mktemp("hugging-face")
    files = sorted(str(path) for path in images.iterdir())
    features = datasets.Features(
        {"label": datasets.Value("int64"), "photo": datasets.Image(), "text": datasets.Value("string")}
    )
    columns = {"label": list(range(12)), "photo": files, "text": ["a"] * 12}
    whole = datasets.Dataset.from_dict(columns, features)
    whole.to_parquet(folder / "train.parquet")
    whole.select(range(3)).to_parquet(folder / "test.parquet")
    datasets.DatasetDict(train=whole, test=whole.select(range(3))).save_to_disk(folder / "saved")
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.getbasetemp() / "hf-cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    # datasets sleeps for 5 s after each pass through a streamed Parquet file.
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0.01)


def module(train, val, **options):
    small = {"crop": 16, "stride": 16, "batch_size": 2, "num_workers": 0}
    return ImageDataModule(train, val, **(small | options))


def load(path, **options):
    return HuggingFaceImages(str(path), **options).load("data.train")


@pytest.mark.parametrize("name", ["train.parquet", "", "saved"])
def test_rows_are_images(name, table, images):
    rows = load(table / name, column="photo" if name else None)
    assert len(rows) == 12
    assert rows[7].decode().tobytes() == read_rgb(images / "n07.png").tobytes()
    assert [record.key for record in rows[2:4]] == ["00000000-n02", "00000001-n03"]
    assert len(load(table / name, split="test" if name != "train.parquet" else "train[:3]")) == 3


def test_every_row_is_trained_on_once_per_pass(table):
    train, val = (HuggingFaceImages(str(table), split) for split in ("train", "test"))
    data = module(train, val, num_workers=2, epoch_batches=6)
    seen = list(itertools.chain(*keys(data.train_dataloader())))
    assert sorted(seen) == [f"{i:08d}-n{i:02d}" for i in range(12)]
    assert [batch.key for batch in data.val_dataloader()] == [[f"{i:08d}-n{i:02d}"] for i in range(3)]
    assert data.describe() == "12 training images, 3 validation images"


def test_a_folder_and_a_data_set_in_one_list(table, images):
    both = [str(images), HuggingFaceImages(str(table / "train.parquet"))]
    data = module(both, both, epoch_batches=12, val_limit=13)
    seen = set(itertools.chain(*keys(data.train_dataloader())))
    assert len(seen) == 24
    assert [batch.key for batch in data.val_dataloader()][11:] == [["n11.png"], ["00000000-n00"]]


def streamed(table, **options):
    return load(table / "train.parquet", streaming=True, **options)


def test_a_streamed_set_is_divided_among_consumers_and_shuffled(table):
    source = streamed(table)
    assert isinstance(source, StreamedImages)

    def drawn(*numbers, count=12, skip=0):
        return [record.decode().getpixel((0, 0))[0] // 4 for record in itertools.islice(
            source.records(*numbers, skip=skip), count)]  # fmt: skip

    assert sorted(drawn(7, 0, 0, 1)) == list(range(12))
    assert drawn(7, 0, 0, 1) != list(range(12))
    parts = [drawn(7, 0, consumer, 3, count=4) for consumer in range(3)]
    assert sorted(itertools.chain(*parts)) == list(range(12))
    twice = drawn(7, 0, 1, 3, count=8)
    assert twice[:4] == parts[1]
    assert sorted(twice[4:]) != sorted(parts[1])
    assert drawn(7, 0, 1, 3, count=5, skip=3) == twice[3:]
    assert drawn(7, 1, 0, 1) != drawn(7, 0, 0, 1)
    assert len(drawn(7, 0, 15, 16)) == 12  # more consumers than images
    assert drawn(8, 0, 0, 1) != drawn(7, 0, 0, 1)


def test_workers_do_not_divide_a_streamed_set_twice(table):
    images = HuggingFaceImages(str(table / "train.parquet"), streaming=True)
    data = module(images, images, num_workers=2, epoch_batches=6, val_limit=2)
    levels = torch.cat([batch.x for batch in data.train_dataloader()])[:, 0, 0, 0]
    assert sorted((levels // 4).tolist()) == list(range(12))
    assert len(data.val_dataloader()) == 2
    assert data.describe() == f"streamed images of {table / 'train.parquet'}, 2 validation images"


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("", {"split": "trian"}, r"data\.train\.split=trian: .*(train.*test|test.*train)"),
        ("saved", {"split": "trian"}, r"data\.train\.split=trian: no such split in .*saved; correct it"),
        (
            "",
            {"column": "image"},
            r"data\.train\.column=image: no such column; give one of label, photo, text",
        ),
        ("", {"column": "label"}, r"data\.train\.column=label: not a column of images"),
        ("nowhere", {}, r"data\.train\.path=.*nowhere: .*; correct the path or name"),
    ],
)
def test_refusals(name, options, message, streaming, table):
    with pytest.raises(ValueError, match=f"^{message}") as caught:
        load(table / name, streaming=streaming, **options)
    assert "\n" not in str(caught.value)


def test_no_or_two_columns_of_images_are_named(tmp_path):
    image = Image.new("RGB", (8, 8))
    two = {"a": [image], "b": [image], "c": [1]}
    datasets.Dataset.from_dict(two).to_parquet(tmp_path / "two.parquet")
    datasets.Dataset.from_dict({"c": [1]}).to_parquet(tmp_path / "none.parquet")
    with pytest.raises(ValueError, match=r"has columns of images a, b; name one with data\.train\.column="):
        load(tmp_path / "two.parquet")
    assert len(load(tmp_path / "two.parquet", column="b")) == 1
    with pytest.raises(ValueError, match=r"has no column of images; name one with .*\(c\)"):
        load(tmp_path / "none.parquet")


def test_the_missing_package_is_named(table, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"^data\.train: .*pip install 'glc-codec\[hf\]'$"):
        load(table)


def test_a_streamed_set_in_a_mixture_needs_weights(table, images):
    mixed = [str(images), HuggingFaceImages(str(table / "train.parquet"), streaming=True)]
    with pytest.raises(ValueError, match=r"^data\.train: .*train\.parquet is not known; give data\.weights="):
        module(mixed, str(images)).setup("fit")
    data = module(mixed, str(images), weights=[1, 3], epoch_batches=100)
    drawn = list(itertools.chain(*keys(data.train_dataloader())))
    assert 120 < sum(key[0] == "0" for key in drawn) < 180
    assert "12 training images" in data.describe()


def test_the_configuration(table, images):
    given = [f"data.train.path={table / 'train.parquet'}", "data.num_workers=0", "data.crop=64"]
    cfg = compose_train("data=hf", *given, "data.val.split=train", "data.train.column=photo")
    data = instantiate(cfg.data)
    data.setup("fit")
    assert data.describe() == "12 training images, 12 validation images"
    data = instantiate(compose_train("data=hf", *given, f"data.val={images}").data)
    data.setup("fit")
    assert data.describe() == "12 training images, 12 validation images"
