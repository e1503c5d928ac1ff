import pickle
import warnings
from itertools import chain

import lightning as L
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from lightning.pytorch.callbacks import ModelCheckpoint
from omegaconf import OmegaConf
from torchvision.transforms import v2

from glc.data.images import to_uint8
from glc.data.module import ImageDataModule
from glc.data.pack import pack
from glc.data.sources import sample_paths
from glc.launch.train import register_resolvers
from tests.data.conftest import numbered
from tests.jobs.stand_ins import write_tar
from tests.programs import ROOT, fresh, start

CONFIGS = ["shards", "folder", "samples", "openimages", "imagenet", "imagenet_kodak", "ffhq", "coco"]


def compose_train(*words):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("train", ["stage=vqvae", *words])


def module(train, val, **options):
    small = {"crop": 16, "stride": 16, "batch_size": 2, "epoch_batches": 5, "num_workers": 0, "shuffle": 6}
    return ImageDataModule(str(train), str(val), **(small | options))


def keys(loader):
    return [batch.key for batch in loader]


def content(batches):
    return [(batch.key, levels_of(batch.x).numpy().tobytes()) for batch in batches]


def levels_of(x):
    """The training loader gives levels; what a step sees are floats."""
    return x if x.dtype == torch.uint8 else to_uint8(x)


@pytest.mark.parametrize("kind", ["shards", "folder", "cached shards", "cached folder"])
def test_every_kind_of_training_source_gives_the_same_kind_of_batches(kind, shards, images):
    source = shards if "shards" in kind else images
    data = module(source, images, cache="cached" in kind)
    loader = data.train_dataloader()
    assert len(loader) == 5
    seen = set()
    for x, key in loader:
        assert x.shape == (2, 3, 16, 16)
        assert x.dtype == torch.uint8
        for levels, name in zip(x, key, strict=True):
            number = int(name.removesuffix(".png")[-2:])
            assert (levels[0] == number * 4).all()
            seen.add(number)
    if "shards" not in kind or "cached" in kind:
        assert len(seen) == 10  # lists go round without repeats


def test_cache_changes_nothing_for_a_folder(images):
    plain, cached = (module(images, images, cache=cache) for cache in (False, True))
    assert content(plain.train_dataloader()) == content(cached.train_dataloader())


def test_cache_skips_bad_images_and_enforces_its_limit(images, tmp_path, monkeypatch, caplog):
    (tmp_path / "bad.png").write_bytes(b"junk")
    (tmp_path / "good.png").write_bytes((images / "n01.png").read_bytes())
    assert set(chain(*keys(module(tmp_path, images, cache=True).train_dataloader()))) == {"good.png"}
    assert "bad.png" in caplog.text
    monkeypatch.setattr("glc.data.module._CACHE_LIMIT", 4 * 40 * 36 * 3)
    with pytest.raises(ValueError, match=r"data\.cache"):
        module(images, images, cache=True).train_dataloader()


@pytest.mark.parametrize("source", ["shards", "folder", "list"])
def test_validation_is_a_fixed_list_in_order(source, shards, images, tmp_path):
    listing = tmp_path / "val.txt"
    listing.write_text("".join(f"{images}/n{i:02d}.png\n" for i in range(12)))
    val = {"shards": shards, "folder": images, "list": listing}[source]
    loader = module(shards, val, val_limit=5).val_dataloader()
    for _ in range(2):
        batches = list(loader)
        numbers = [int(batch.key[0].removesuffix(".png")[-2:]) for batch in batches]
        assert numbers == list(range(5))
        assert all(batch.x.shape == (1, 3, 32, 32) for batch in batches)
        assert [to_uint8(batch.x)[0, 0, 0, 0].item() for batch in batches] == [0, 4, 8, 12, 16]


def test_validation_crops_come_in_batches(images):
    loader = module(images, images, val_crop=16, val_batch_size=5).val_dataloader()
    shapes = [tuple(batch.x.shape) for batch in loader]
    assert shapes == [(5, 3, 16, 16), (5, 3, 16, 16), (2, 3, 16, 16)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop": 24}, r"data\.crop: 24 is not a multiple of data\.stride=16; try 32"),
        ({"val_crop": 40}, r"data\.val_crop: 40"),
        ({"batch_size": 0}, r"data\.batch_size: is 0, must be at least 1"),
        ({"num_workers": -1}, r"data\.num_workers"),
        ({"min_scale": 1.5}, r"data\.min_scale"),
        (
            {"weights": [1, 2]},
            r"data\.weights: 2 numbers for the 1 entries of data\.train; give one for each",
        ),
        ({"weights": [0]}, r"data\.weights: \[0\]; give positive numbers"),
        (
            {"crop": [{"from_step": 0, "sizes": {16: 1, 40: 1}}]},
            r"data\.crop: 40 is not a multiple of data\.stride=16; try 32",
        ),
        ({"val_batch_size": 4}, r"data\.val_batch_size: uncropped images differ"),
    ],
)
def test_wrong_values_name_their_key(options, message):
    with pytest.raises(ValueError, match=message):
        module("a", "b", **options)


@pytest.mark.parametrize("cache", [False, True])
@pytest.mark.parametrize("kind", ["shards", "folders", "both"])
def test_entries_are_mixed_with_their_weights(kind, cache, shards, images, tmp_path):
    few = tmp_path / "few"
    few.mkdir()
    numbered(40).save(few / "n40.png")
    if kind == "shards":
        pack([few], tmp_path / "packed", workers=1, progress=False)
    train = [str(tmp_path / "packed") if kind == "shards" else str(few)]
    train.append(str(images) if kind == "folders" else str(shards))
    options = {"cache": cache, "crop": 16, "stride": 16, "epoch_batches": 100, "num_workers": 0}
    for weights, share in (([3, 1], 0.75), (None, 1 / 13)):
        data = ImageDataModule(train, str(images), weights=weights, **options)
        loader = data.train_dataloader()
        drawn = list(chain(*keys(loader)))
        assert abs(sum("n40" in key for key in drawn) / len(drawn) - share) < 0.07
        assert f"few {share:.1%}" in data.describe().replace("packed", "few")


@pytest.fixture
def masked(images, tmp_path):
    """A shard of five samples, each with an image and a mask, which is another image."""
    read = [(images / f"n{i:02d}.png").read_bytes() for i in range(12)]
    members = [[(f"{i}.png", read[i]), (f"{i}.mask.png", read[i + 6])] for i in range(5)]
    return write_tar(tmp_path / "masked.tar", chain(*members))


@pytest.mark.parametrize(("member", "offset"), [(None, 0), ("png", 0), ("mask.png", 6), (".MASK.png", 6)])
def test_training_validation_and_cache_use_the_same_image_of_a_sample(member, offset, masked, caplog):
    for cache in (False, True):
        caplog.clear()
        data = module(masked, masked, member=member, cache=cache)
        train = {
            (key, levels[0, 0, 0].item() // 4)
            for x, ks in data.train_dataloader()
            for levels, key in zip(x, ks, strict=True)
        }
        val = [(key[0], to_uint8(x)[0, 0, 0, 0].item() // 4) for x, key in data.val_dataloader()]
        assert val == [(str(i), i + offset) for i in range(5)]
        assert train <= set(val)
        assert len(train) >= 4
        assert caplog.text.count("a sample has 2 images (png, mask.png)") == (member is None)


def test_a_member_that_no_sample_has_is_one_line(masked, shards):
    with pytest.raises(ValueError, match=r"^data\.member=jpg: no sample of .*masked\.tar has png, mask\.png"):
        module(masked, masked, member="jpg").setup("fit")
    with pytest.raises(ValueError, match=r"^data\.val: the shards in .* contain no mask\.png"):
        module(masked, shards, member="mask.png").setup("fit")


def test_augmentations_are_tried_before_training(images):
    data = module(images, images, augment=[v2.CenterCrop(8)])
    with pytest.raises(ValueError, match=r"^data\.augment: CenterCrop returned an image of 8 x 8 pixels"):
        data.setup("fit")


def test_missing_data_name_their_key(shards, images, tmp_path):
    with pytest.raises(ValueError, match=r"^data\.train: .*nowhere"):
        module(tmp_path / "nowhere", images).setup("fit")
    with pytest.raises(ValueError, match=r"^data\.val: .*nowhere"):
        module(shards, tmp_path / "nowhere").setup("fit")
    (tmp_path / "void-000000.tar").write_bytes(b"\0" * 10240)
    with pytest.raises(ValueError, match=r"^data\.val: .*void-000000\.tar: it contains no image"):
        module(shards, tmp_path).setup("validate")


class Recorder(L.LightningModule):
    """Writes down what it was given; its one weight makes it trainable."""

    def __init__(self, stop_at=None):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen, self.validated, self.stop_at = [], [], stop_at

    def training_step(self, batch, index):
        if self.stop_at is not None and self.global_step == self.stop_at:
            raise KeyboardInterrupt
        assert batch.x.dtype == torch.float32
        assert -1 <= batch.x.min() <= batch.x.max() <= 1
        self.seen += content([batch])
        return (self.weight * batch.x.mean()).sum()

    def validation_step(self, batch, index):
        self.validated += batch.key

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(**options):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return L.Trainer(accelerator="cpu", **quiet, **options)


def fit(data, folder, stop_at=None, ckpt=None, every=3):
    recorder = Recorder(stop_at)
    save = ModelCheckpoint(folder, "{step}", every_n_train_steps=every, save_top_k=-1)
    try:
        trainer(default_root_dir=folder, max_steps=13, callbacks=[save]).fit(recorder, data, ckpt_path=ckpt)
    except (KeyboardInterrupt, SystemExit):
        assert stop_at is not None
    return recorder


@pytest.mark.parametrize("workers", [0, 2])
def test_a_killed_fit_resumes_with_the_next_batch(workers, shards, images, tmp_path):
    def data():
        return module(shards, images, num_workers=workers, val_limit=2)

    whole = fit(data(), tmp_path / "whole")
    assert len(whole.seen) == 13
    assert len({entry[1] for entry in whole.seen}) == 13
    assert whole.validated[:2] == ["n00.png", "n01.png"]
    # Steps 3 and 9 lie within an epoch of 5 batches, 6 is one past its end, 12 as well.
    for step in (3, 6, 9, 12):
        path = tmp_path / "whole" / f"step={step}.ckpt"
        torch.load(path, weights_only=True)
        resumed = fit(data(), tmp_path / f"resumed{step}", ckpt=path)
        assert resumed.seen == whole.seen[step:], f"resumed at step {step}"
    killed = fit(data(), tmp_path / "killed", stop_at=8)
    assert killed.seen == whole.seen[:8]
    resumed = fit(data(), tmp_path / "killed", ckpt=tmp_path / "killed" / "step=6.ckpt")
    assert resumed.seen == whole.seen[6:]


def test_resuming_at_the_end_of_an_epoch(shards, images, tmp_path):
    whole = fit(module(shards, images), tmp_path / "a", every=5)
    resumed = fit(module(shards, images), tmp_path / "b", ckpt=tmp_path / "a" / "step=5.ckpt")
    assert resumed.seen == whole.seen[5:]


def test_lightning_does_not_warn_about_the_data(shards, images, tmp_path):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(module(shards, images, num_workers=1), tmp_path)
    texts = [str(item.message) for item in caught]
    assert not [t for t in texts if "__len__" in t or "IterableDataset" in t or "resumable" in t], texts


EXIT = """
import sys
from tests.data.test_module import module

data = module(sys.argv[1], sys.argv[1], num_workers=1)
loaders = [data.train_dataloader(), data.val_dataloader()]
running = [iter(loader) for loader in loaders]
print([len(next(batches).key) for batches in running])
"""


def test_a_process_that_exits_within_an_epoch_does_not_wait_for_its_workers(images):
    # Workers ignore the first SIGTERM, and that of the exit was the first one after Ctrl-C or `kill PID`.
    done = fresh(["-c", EXIT, images])
    assert (done.returncode, done.stdout.strip()) == (0, "[2, 1]"), done.stderr


DDP = """
import pickle, sys
from pathlib import Path
from tests.data.test_module import Recorder, module, trainer

train, val, out = sys.argv[1:]

class Saving(Recorder):
    def on_fit_end(self):
        Path(out, f"rank{self.global_rank}").write_bytes(pickle.dumps((self.seen, self.validated)))

# Forked, so that only one process pays for the imports.
ranks = {"devices": 2, "strategy": "ddp_fork", "enable_checkpointing": False, "num_sanity_val_steps": 0}
trainer(max_steps=10, **ranks).fit(Saving(), module(train, val, num_workers=1, val_limit=3))
"""


def test_two_ranks_of_one_shard_train_without_waiting_for_each_other(shards, images, tmp_path):
    done = start(["-c", DDP, shards / "train-000000.tar", images, tmp_path], folder=tmp_path)
    assert done.returncode == 0, done.stderr
    (seen0, val0), (seen1, val1) = (pickle.loads((tmp_path / f"rank{i}").read_bytes()) for i in range(2))
    assert len(seen0) == len(seen1) == 10
    assert len({crops for _, crops in seen0 + seen1}) == 20
    assert sorted(set(val0) | set(val1)) == ["n00.png", "n01.png", "n02.png"]
    assert len(val0) == len(val1)


@pytest.mark.parametrize("name", CONFIGS)
def test_each_config_fits_the_constructor(name, shards, images):
    register_resolvers()
    assert (ROOT / "conf" / "data" / f"{name}.yaml").read_text().startswith("#")
    config = compose_train(f"data={name}", "batch=6", "trainer.devices=2").data
    for key, value in (("train", str(shards)), ("val", [str(images)])):
        if OmegaConf.is_missing(config, key):
            config[key] = value
    resolved = OmegaConf.to_container(config, resolve=True)
    made = instantiate(config)
    assert made.crop == resolved["crop"]
    assert made.batch_size == 3  # of the six over two devices
    config.update(train=[str(shards / "*.tar")], val=str(images), num_workers=0)
    data = instantiate(config)
    data.setup("fit")
    batch = next(iter(data.val_dataloader()))
    assert batch.x.shape[-1] % data.stride == 0


def test_environment_variable_sets_the_data_folder(monkeypatch):
    monkeypatch.setenv("GLC_DATA", "/big/disk")
    config = compose_train("data=openimages").data
    assert str(config.train).startswith("/big/disk/openimages")


def test_samples_train_without_packing():
    train, val = ([str(path) for path in sample_paths(split)] for split in ("train", "test"))
    data = ImageDataModule(train, val, crop=64, epoch_batches=2, num_workers=0)
    assert [batch.x.shape for batch in data.train_dataloader()] == [(8, 3, 64, 64)] * 2
    assert len(data.val_dataloader()) == 3
