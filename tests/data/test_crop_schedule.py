import numpy as np
import pytest

from glc.data.crop_schedule import CropSchedule

PHASES = [
    {"from_step": 0, "sizes": {32: 1}},
    {"from_step": 100, "sizes": {32: 3, 64: 1}},
    {"from_step": 4100, "sizes": {128: 1}},
]


def test_sides_follow_the_phases_with_their_probabilities():
    schedule = CropSchedule(PHASES)
    assert schedule.sides == [32, 64, 128]
    sides = schedule.of_steps(seed=0, epoch=0, first=0, count=4200)
    assert set(sides[:100]) == {32}
    assert set(sides[4100:]) == {128}
    assert set(sides[100:4100]) == {32, 64}
    assert abs((sides[100:4100] == 64).mean() - 0.25) < 0.03  # four standard errors
    assert abs(np.corrcoef(sides[100:4099], sides[101:4100])[0, 1]) < 0.07


def test_sides_depend_on_seed_epoch_and_step_alone():
    schedule = CropSchedule([{"from_step": 0, "sizes": {32: 1, 64: 1}}])
    sides = schedule.of_steps(3, 2, 500, 60).tolist()
    assert CropSchedule([{"from_step": 0, "sizes": {32: 1, 64: 1}}]).of_steps(3, 2, 900, 60).tolist() == sides
    assert schedule.of_steps(3, 2, 500, 40).tolist() == sides[:40]
    assert schedule.of_steps(3, 3, 500, 60).tolist() != sides
    assert schedule.of_steps(4, 2, 500, 60).tolist() != sides


def test_one_side_is_a_schedule_too():
    assert CropSchedule(48).of_steps(0, 0, 0, 3).tolist() == [48] * 3


@pytest.mark.parametrize(
    ("crop", "message"),
    [
        ("large", "large is not a schedule; give"),
        ([{"from_step": 0}], "is not a schedule"),
        ([{"from_step": 0, "sizes": 256}], "is not a schedule"),
        ([], r"start at the steps \[\]; the first must start at 0"),
        (PHASES[1:], r"start at the steps \[100, 4100\]; the first must start at 0"),
        ([PHASES[0], PHASES[0]], r"start at the steps \[0, 0\]"),
        ([{"from_step": 0, "sizes": {32: 0, 64: 1}}], "give a positive number for each size"),
        ([{"from_step": 0, "sizes": {}}], "give a positive number for each size"),
        ([{"from_step": 0, "sizes": {-32: 1}}], "is -32, must be at least 1"),
        (0, "is 0, must be at least 1"),
    ],
)
def test_other_values_are_refused(crop, message):
    with pytest.raises(ValueError, match=rf"^data\.crop: .*{message}"):
        CropSchedule(crop)
