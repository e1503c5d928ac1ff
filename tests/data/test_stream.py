import itertools
import logging

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from glc.data.augmentations import Augmentations
from glc.data.crop_schedule import CropSchedule
from glc.data.images import to_uint8
from glc.data.shards import ListSource, Record, ShardSource
from glc.data.stream import (
    FixedImages,
    ImageBatch,
    TrainLoader,
    TrainStream,
    centre_crop,
    images_of,
    random_crop,
)
from glc.errors import SettingError


@pytest.fixture
def source(shards):
    return ShardSource([str(path) for path in sorted(shards.glob("*.tar"))], shuffle=5)


def records_of(images):
    return [Record(f"n{i:02d}", images / f"n{i:02d}.png") for i in range(12)]


def stream(source, **options):
    return TrainStream(source, **{"crop": 16, "batch_size": 3, "epoch_batches": 7, "seed": 5} | options)


def plain(batches):
    return [(batch.key, batch.x.numpy().tobytes()) for batch in batches]


SCHEDULE = [{"from_step": 0, "sizes": {16: 1}}, {"from_step": 4, "sizes": {16: 1, 24: 1, 32: 1}}]


def scheduled(source, **options):
    return stream(source, **({"crop": CropSchedule(SCHEDULE), "scale_batch": True} | options))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_schedule_gives_all_ranks_the_same_sizes_and_keeps_the_pixels(source, workers):
    ranks = [
        [list(loader) for _ in range(4)]
        for loader in (TrainLoader(scheduled(source, rank=rank, ranks=2), workers) for rank in range(2))
    ]
    shapes = [[tuple(batch.x.shape) for epoch in epochs for batch in epoch] for epochs in ranks]
    assert shapes[0] == shapes[1]
    # 3 images of 16 x 16 are 768 pixels: one image of 24 x 24, and one of 32 x 32, which is more.
    assert set(shapes[0][:4]) == {(3, 3, 16, 16)}
    assert set(shapes[0]) == {(3, 3, 16, 16), (1, 3, 24, 24), (1, 3, 32, 32)}
    assert not {data for epoch in ranks[0] for _, data in plain(epoch)} & {
        data for epoch in ranks[1] for _, data in plain(epoch)
    }


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stop", [1, 4, 7])
def test_a_schedule_resumes_exactly_within_an_epoch(source, workers, stop):
    augment = Augmentations([v2.ColorJitter(brightness=0.5), v2.RandomVerticalFlip()])

    def loader():
        return TrainLoader(scheduled(source, augment=augment, batch_size=5), workers)

    whole = loader()
    first, second, third = plain(whole), plain(whole), plain(whole)
    cut = loader()
    assert plain(cut) == first
    batches = iter(cut)
    assert plain(itertools.islice(batches, stop)) == second[:stop]
    state = cut.state_dict()
    del batches
    resumed = loader()
    resumed.load_state_dict(state)
    if stop < 7:
        assert plain(resumed) == second[stop:]
    assert plain(resumed) == third


def test_the_batches_of_a_step_have_one_size(source):
    free = [{"from_step": 0, "sizes": {16: 1, 24: 1, 32: 1}}]
    loader = TrainLoader(stream(source, crop=CropSchedule(free), accumulate=3, epoch_batches=26))
    sides = [batch.x.shape[-1] for _ in range(2) for batch in loader]
    for epoch in (sides[:26], sides[26:]):
        steps = [set(epoch[start : start + 3]) for start in range(0, 26, 3)]
        assert all(len(step) == 1 for step in steps)
        assert len(set().union(*steps)) == 3


def test_the_schedule_follows_the_trainers_step(source):
    step = 0
    phases = [{"from_step": 0, "sizes": {16: 1}}, {"from_step": 9, "sizes": {32: 1}}]
    loader = TrainLoader(
        stream(source, crop=CropSchedule(phases), accumulate=2),
        current_epoch=lambda: 1,
        current_step=lambda: step,
    )
    assert {batch.x.shape[-1] for batch in loader} == {16}  # the epochs before ended early
    step = 7  # two steps of two batches, then the phase begins
    assert [batch.x.shape[-1] for batch in loader] == [16] * 4 + [32] * 3
    step = 8  # resumed at the second step of the epoch
    loader.load_state_dict({"epoch": 1, "batch": 2})
    assert [batch.x.shape[-1] for batch in loader] == [16] * 2 + [32] * 3


def test_augmentations_change_the_crops_only_and_are_those_of_their_slot(source):
    inverted = Augmentations([v2.RandomInvert(p=1.0)])
    (plain_crops, changed) = (list(TrainLoader(stream(source, augment=a))) for a in (None, inverted))
    for before, after in zip(plain_crops, changed, strict=True):
        assert before.key == after.key
        assert torch.equal(255 - before.x, after.x)
    # The first images of an epoch do not depend on how many are loaded together.
    jitter = Augmentations([v2.ColorJitter(brightness=0.9)])
    single, triple = (list(TrainLoader(stream(source, augment=jitter, batch_size=size))) for size in (1, 3))
    assert torch.equal(torch.cat([batch.x for batch in single[:6]]), torch.cat([b.x for b in triple[:2]]))
    assert len({round(batch.x.float().mean().item(), 3) for batch in single}) == 7


@pytest.mark.parametrize("workers", [0, 1])
def test_a_failing_augmentation_is_one_line_from_a_worker_too(source, workers):
    loader = TrainLoader(stream(source, augment=Augmentations([v2.CenterCrop(8)])), workers)
    with pytest.raises(SettingError, match=r"^data\.augment: CenterCrop returned an image of 8 x 8 [^\n]*$"):
        next(iter(loader))


def test_batches_have_the_promised_form_and_show_the_image_of_their_key(source):
    batches = list(TrainLoader(stream(source)))
    assert len(batches) == 7
    for x, key in batches:
        assert x.dtype == torch.uint8
        assert x.shape == (3, 3, 16, 16)
        assert x.is_contiguous()
        for levels, name in zip(x.numpy(), key, strict=True):
            assert (levels[0] == int(name[-2:]) * 4).all()
            # green is the column, blue the row: a window, mirrored or not
            np.testing.assert_array_equal(np.diff(levels[2].astype(int), axis=0), 1)
            assert abs(int(levels[1, 0, 1]) - int(levels[1, 0, 0])) == 1


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_epochs_repeat_exactly_and_differ_from_each_other(source, workers):
    loader, again = TrainLoader(stream(source), workers), TrainLoader(stream(source), workers)
    epochs = [plain(loader) for _ in range(3)]
    assert [len(epoch) for epoch in epochs] == [7] * 3
    assert [plain(again) for _ in range(3)] == epochs
    assert epochs[0] != epochs[1] != epochs[2]


def test_ranks_and_workers_see_different_crops(source):
    ranks = [plain(TrainLoader(stream(source, rank=rank, ranks=2))) for rank in range(2)]
    assert not {data for _, data in ranks[0]} & {data for _, data in ranks[1]}
    with_workers = plain(TrainLoader(stream(source), 2))
    assert len({data for _, data in with_workers}) == 7


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stop", [1, 4, 7])
def test_resuming_within_an_epoch_is_exact(source, workers, stop):
    whole = TrainLoader(stream(source), workers)
    first, second, third = plain(whole), plain(whole), plain(whole)

    cut = TrainLoader(stream(source), workers)
    assert plain(cut) == first
    batches = iter(cut)
    assert plain(itertools.islice(batches, stop)) == second[:stop]
    state = cut.state_dict()
    assert all(isinstance(value, int) for value in state.values())
    del batches

    resumed = TrainLoader(stream(source), workers)
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    if stop < 7:
        assert plain(resumed) == second[stop:]
    assert plain(resumed) == third


def test_state_of_one_rank_serves_another_even_with_bad_images(images):
    # Rank 0 meets the unreadable records at other places than rank 1: positions must not depend on it.
    source = ListSource([*records_of(images), Record("bad1", b"junk"), Record("bad2", b"")])

    def loader(rank):
        return TrainLoader(stream(source, rank=rank, ranks=2))

    whole = plain(loader(1))
    at_rank_0 = loader(0)
    next(itertools.islice(at_rank_0, 3, None))
    resumed = loader(1)
    resumed.load_state_dict(at_rank_0.state_dict())
    assert plain(resumed) == whole[4:]


def test_resuming_with_another_layout_warns(source, caplog):
    loader = TrainLoader(stream(source), 0)
    next(iter(loader))
    other = TrainLoader(stream(source), 2)
    with caplog.at_level(logging.WARNING):
        other.load_state_dict(loader.state_dict())
    assert "workers was 0, is 2" in caplog.text
    assert len(plain(other)) == 6
    with pytest.raises(ValueError, match="not the state of a training loader"):
        other.load_state_dict({"_num_yielded": 3})


def test_position_follows_the_trainer_when_there_is_one(source):
    own = TrainLoader(stream(source))
    epochs = [plain(own) for _ in range(4)]
    epoch = 2
    loader = TrainLoader(stream(source), current_epoch=lambda: epoch)
    assert plain(loader) == epochs[2]
    loader.load_state_dict(own.state_dict() | {"epoch": 2, "batch": 5})
    assert plain(loader) == epochs[2][5:]
    # Saved after fewer batches than an epoch has, by a trainer that then began the next one.
    epoch = 3
    loader.load_state_dict(own.state_dict() | {"epoch": 2, "batch": 5})
    assert plain(loader) == epochs[3]
    # Saved right after the last batch, before the trainer had counted the epoch.
    epoch = 2
    loader.load_state_dict(own.state_dict() | {"epoch": 2, "batch": 7})
    assert plain(loader) == epochs[3]


def test_unused_iterator_does_not_advance_the_epoch(source):
    loader, reference = TrainLoader(stream(source)), TrainLoader(stream(source))
    iter(loader)
    assert plain(loader) == plain(reference)


def test_global_random_state_is_unchanged(source):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    plain(TrainLoader(stream(source), 2))
    assert torch.equal(torch.rand(3), expected)


def test_bad_images_are_replaced_without_moving_the_others(images, caplog):
    good = records_of(images)
    bad = [*good[:5], Record("n05", b"junk", "some.tar"), *good[6:]]
    expected = plain(TrainLoader(stream(ListSource(good), batch_size=1, epoch_batches=48)))
    with caplog.at_level(logging.WARNING):
        found = plain(TrainLoader(stream(ListSource(bad), batch_size=1, epoch_batches=48)))
    replaced = [keys for keys, _ in expected].count(["n05"])
    assert replaced == 4
    assert sum(a != b for a, b in zip(expected, found, strict=True)) == replaced
    assert ["n05"] not in [keys for keys, _ in found]
    assert caplog.text.count("some.tar: n05") == 1
    assert "1 unreadable so far" in caplog.text


def test_nothing_readable_is_an_error_not_an_endless_loop():
    loader = TrainLoader(stream(ListSource([Record("a", b""), Record("b", b"junk")])))
    with pytest.raises(RuntimeError, match="in a row are unreadable"):
        next(iter(loader))


def test_fixed_list_is_centre_cropped_and_replaces_unreadable_images(images, caplog):
    good = records_of(images)
    records = [good[1], Record("gone", images / "gone.png"), good[2]]
    fixed = FixedImages(records, crop=None, stride=16)
    x, key = fixed[0]
    levels = to_uint8(x).numpy()
    assert (key, levels.shape) == ("n01", (3, 32, 32))
    assert levels[:, 0, 0].tolist() == [4, 4, 2]  # 40 x 36 leaves 4 columns and 2 rows
    assert [fixed[i][1] for i in range(3)] == ["n01", "n02", "n02"]
    assert "gone.png: no such file" in caplog.text
    with pytest.raises(RuntimeError, match=r"data\.val"):
        FixedImages(records[1:2], None, 16)[0]


def test_images_of_a_batch_of_any_kind():
    x = torch.zeros(2, 3, 4, 4)
    for batch in (ImageBatch(x, ["a", "b"]), x, (x, torch.tensor([1, 0])), [x]):
        assert images_of(batch) is x
    for batch, got in (({"image": 1}, "dict"), ([], "list"), (torch.zeros(2, 1, 4, 4), r"\[2, 1")):
        with pytest.raises(SettingError, match=f"^data: a batch contains {got}.*give ImageBatch"):
            images_of(batch)


def coordinates(width, height):
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([x, y, np.zeros_like(x)], axis=-1).astype(np.uint8))


def test_unscaled_crops_are_exact_windows_that_reach_every_edge_and_flip_about_half():
    image = coordinates(20, 14)
    lefts, tops, mirrored = set(), set(), 0
    for seed in range(300):
        cut, flipped = (
            np.asarray(random_crop(image, 8, np.random.default_rng(seed), flip=flip))
            for flip in (False, True)
        )
        left, top = cut[0, 0, :2].tolist()
        np.testing.assert_array_equal(cut, np.asarray(image)[top : top + 8, left : left + 8])
        lefts.add(left)
        tops.add(top)
        if not np.array_equal(flipped, cut):
            np.testing.assert_array_equal(flipped, cut[:, ::-1])
            mirrored += 1
    assert lefts == set(range(13))
    assert tops == set(range(7))
    assert 105 < mirrored < 195


def test_scaling_shows_a_part_of_the_size_asked_for():
    image = coordinates(200, 160)
    for seed in range(20):
        cut = np.asarray(random_crop(image, 32, np.random.default_rng(seed), 0.5, 0.5, flip=False))
        # At scale 0.5 neighbouring pixels lie two source pixels apart.
        steps = np.diff(cut[16, 4:-4, 0].astype(int))
        assert cut.shape == (32, 32, 3)
        assert abs(steps.mean() - 2) < 0.1


@pytest.mark.parametrize("scales", [(1.0, 1.0), (0.3, 0.6)])
def test_small_images_are_scaled_up_to_the_crop(scales):
    image = coordinates(10, 30)
    for seed in range(20):
        cut = np.asarray(random_crop(image, 40, np.random.default_rng(seed), *scales, flip=False)).astype(int)
        assert cut.shape == (40, 40, 3)
        # The short side is seen whole, so the horizontal coordinate runs over all of it.
        assert cut[0, 0, 0] <= 1
        assert cut[0, -1, 0] >= 8


def test_centre_crop_takes_the_middle_and_scales_small_images_up():
    image = coordinates(50, 40)
    whole, square = (np.asarray(centre_crop(image, crop, 16)) for crop in (None, 16))
    np.testing.assert_array_equal(whole, np.asarray(image)[4:36, 1:49])
    np.testing.assert_array_equal(square, np.asarray(image)[12:28, 17:33])
    assert centre_crop(coordinates(20, 10), None, 16).size == (32, 16)
    assert centre_crop(coordinates(20, 10), 64, 16).size == (64, 64)
