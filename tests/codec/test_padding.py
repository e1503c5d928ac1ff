import pytest
import torch

from glc.codec.images import crop, pad, padded_size


@pytest.mark.parametrize(
    ("size", "stride", "expected"),
    [((1, 64), 64, (64, 64)), ((65, 128), 64, (128, 128)), ((127, 129), 128, (128, 256))],
)
def test_padded_size_is_the_least_multiple(
    size: tuple[int, int], stride: int, expected: tuple[int, int]
) -> None:
    assert padded_size(*size, stride) == expected


def test_padding_repeats_the_edge_and_cropping_undoes_it() -> None:
    x = torch.arange(6.0).reshape(1, 1, 2, 3)
    padded = pad(x, 4)
    assert padded[0, 0].tolist() == [[0, 1, 2, 2], [3, 4, 5, 5], [3, 4, 5, 5], [3, 4, 5, 5]]
    assert torch.equal(crop(padded, 2, 3), x)
    assert pad(padded, 4).shape == padded.shape
