"""scripts/demo.py: its measurements and its checks."""

from pathlib import Path

from PIL import Image

import glc
from glc.data.images import to_tensor
from tests.codec.fixed_model import fixed_codec_weights, fixed_image
from tests.programs import load_script

script = load_script("demo")


def test_all_rate_points_are_measured_on_files(tmp_path: Path) -> None:
    codec = glc.load(fixed_codec_weights(tmp_path / "fixed.safetensors"), "cpu")
    image = to_tensor(Image.fromarray(fixed_image(192, 176)))
    points, strips, _ = script.measure(codec, [image], tmp_path)
    assert [point["rate"] for point in points] == [0, 1, 2, 3]
    sizes = [(tmp_path / f"image0-rate{rate}.glc").stat().st_size for rate in range(4)]
    assert [round(point["bpp"] * 192 * 176) for point in points] == [8 * size for size in sizes]
    assert all(x.shape == (3, 192, 176) for x in strips[0])
    script.save_side_by_side(strips, tmp_path / "all.png")
    assert (tmp_path / "all.png").is_file()


def test_each_shortcoming_is_reported() -> None:
    good = {
        "points": [{"bpp": 0.1}, {"bpp": 0.2}],
        "stages": {"vqvae": {"first_val_loss": 2.0, "last_val_loss": 1.0}},
        "validation": {"psnr": {"joint": 20.0, "stage_1_at_initialisation": 10.0}},
    }
    assert script.shortcomings(good) == []
    for key, value in (
        ("points", [{"bpp": 0.2}, {"bpp": 0.1}]),
        ("stages", {"vqvae": {"first_val_loss": 1.0, "last_val_loss": 1.0}}),
        ("validation", {"psnr": {"joint": 10.0, "stage_1_at_initialisation": 10.0}}),
    ):
        assert len(script.shortcomings({**good, key: value})) == 1
