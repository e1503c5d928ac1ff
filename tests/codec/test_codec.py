"""The complete codec: images to files and back."""

import copy
import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import glc
from glc.codec import bitstream
from glc.data.images import to_input
from glc.models.hyperprior import CategoricalHyperprior
from tests.codec.fixed_model import fixed_image
from tests.codec.variants import VARIANTS, WITH_Y, Variants
from tests.programs import fresh


@pytest.mark.parametrize(
    ("height", "width"), [(1, 1), (2, 3), (1, 70), (31, 33), (32, 32), (64, 31), (67, 130), (130, 67)]
)
def test_decoded_symbols_equal_the_encoders(codec: glc.Codec, height: int, width: int) -> None:
    image = fixed_image(height, width)
    for quality in (0, 16.1, 62.7, 100):
        rate_index = codec.rate_index(quality)
        (data,), sent = codec.entropy_encode(
            codec.encode_latent([to_input(image)]), [(height, width)], rate_index
        )
        assert codec.compress(image, quality) == data
        header, _ = bitstream.unpack(data)
        assert (header.height, header.width, header.rate_index) == (height, width, rate_index)
        decoded, sizes = codec.entropy_decode([data])
        assert decoded.symbols == sent == codec.symbols(data)
        assert sent.y.any()
        assert sizes == [(height, width)]
        assert codec.decompress(data).size == (width, height)


@pytest.mark.parametrize("codec", WITH_Y, indirect=True)
def test_symbols_depend_on_the_image_and_determine_it(codec: glc.Codec) -> None:
    first, second = (codec.compress(fixed_image(64, 100, seed), 80) for seed in (0, 1))
    assert codec.symbols(first) != codec.symbols(second)
    assert codec.decompress(first).tobytes() != codec.decompress(second).tobytes()
    # One symbol more or less shows.
    symbols = codec.symbols(first)
    changed = glc.Symbols(symbols.z, symbols.y.clone())
    changed.y[0, 3, 4, 4] += 3
    third = codec.from_symbols(changed, (64, 100), codec.rate_index(80))
    assert codec.symbols(third) == changed
    assert codec.decompress(third).tobytes() != codec.decompress(first).tobytes()


def test_indices_outside_the_rate_points_codebook_are_refused(variants: Variants) -> None:
    codec = variants.codec("indices_map")
    sizes = codec.model.coder.sizes
    for point, size in enumerate(sizes):
        y = torch.full((1, 4, 4), size - 1, dtype=torch.int32)
        rate_index, side = point * bitstream.RATE_ONE, (4 * codec.model.stride, 4 * codec.model.stride)
        symbols = glc.Symbols(torch.zeros(1, 0, dtype=torch.long), y)
        assert codec.symbols(codec.from_symbols(symbols, side, rate_index)) == symbols
        with pytest.raises(ValueError, match=rf"y must lie in \[0, {size - 1}\]"):
            codec.from_symbols(glc.Symbols(symbols.z, y + 1), side, rate_index)


@pytest.mark.parametrize("variant", VARIANTS)
def test_decoding_is_deterministic(variants: Variants, variant: str) -> None:
    codec = variants.codec(variant)
    files = [codec.compress(fixed_image(66, 90, seed), 70) for seed in range(3)]
    images = [np.asarray(codec.decompress(data)).astype(int) for data in files]
    assert not np.array_equal(images[0], images[1])
    with ThreadPoolExecutor(1) as pool:
        elsewhere = pool.submit(codec.decompress, files[0]).result()
    codec.compress(fixed_image(40, 200, 9), 3)
    for again in (codec, glc.load(variants.weights(variant), "cpu")):
        assert np.array_equal(images[0], again.decompress(files[0]))
    # A thread or a batch may split the decoder's sums in another way: by rounding, never in the symbols.
    together = codec.decompress_batch(files)
    for one, other in [*zip(images, together, strict=True), (images[0], elsewhere)]:
        assert np.abs(one - np.asarray(other)).max() <= 1


def test_batch_symbols_equal_single_image_symbols(codec: glc.Codec) -> None:
    sizes = [(65, 90), (70, 96), (72, 89)]
    images = [fixed_image(height, width, seed=height) for height, width in sizes]
    latent = codec.encode_latent([to_input(image) for image in images])
    files, chosen = codec.entropy_encode(latent, sizes, codec.rate_index(33))
    assert codec.compress_batch(images, 33) == files
    assert [image.size for image in codec.decompress_batch(files)] == [(90, 65), (96, 70), (89, 72)]
    assert codec.entropy_decode(files)[0].symbols == chosen
    for i, data in enumerate(files):
        assert codec.symbols(data) == glc.Symbols(chosen.z[i : i + 1], chosen.y[i : i + 1])
    assert codec.compress_batch([]) == []
    assert codec.decompress_batch([]) == []
    with pytest.raises(ValueError, match="one size"):
        codec.compress_batch([images[0], fixed_image(8, 8)])
    with pytest.raises(ValueError, match="one size"):
        codec.decompress_batch([files[0], codec.compress(fixed_image(8, 8), 33)])


@pytest.mark.parametrize("codec", ["categorical", "indices_map"], indirect=True)
def test_concurrent_threads_write_the_same_bytes(
    codec: glc.Codec, set_threads: Callable[[int], None]
) -> None:
    images = [fixed_image(40 + 11 * (k % 5), 96 - 7 * (k % 4), seed=k) for k in range(24)]

    def work(k: int) -> tuple[bytes, glc.Symbols, bytes]:
        data = codec.compress(images[k], 4 * k)
        return data, codec.symbols(data), codec.decompress(data).tobytes()

    set_threads(1)
    alone = [work(k) for k in range(24)]
    with ThreadPoolExecutor(8, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        together = list(pool.map(work, range(24)))
    assert together == alone


@pytest.mark.parametrize("codec", WITH_Y, indirect=True)
def test_decode_z_ignores_symbols_of_y(codec: glc.Codec) -> None:
    data = codec.compress(fixed_image(96, 64), 60)
    symbols, rate_index = codec.symbols(data), codec.rate_index(60)

    def with_symbols(z: Tensor, y: Tensor) -> bytes:
        return codec.from_symbols(glc.Symbols(z, y), (96, 64), rate_index)

    image = codec.decode_z(data)
    assert image.size == (64, 96)
    assert image.tobytes() != codec.decompress(data).tobytes()
    others = [with_symbols(symbols.z, y) for y in (symbols.y.flip(-1), symbols.y * 3 - 1)]
    assert others[0] != data
    assert {codec.decode_z(other).tobytes() for other in others} == {image.tobytes()}
    categorical = isinstance(codec.model.coder.hyper, CategoricalHyperprior)
    z = (symbols.z + 7) % 32 if categorical else symbols.z + 2
    assert codec.decode_z(with_symbols(z, symbols.y)).tobytes() != image.tobytes()
    # What it draws is the file whose symbols are all zero, up to the float entropy model of `decode_z`.
    zero = codec.decompress(with_symbols(symbols.z, torch.zeros_like(symbols.y)))
    difference = np.asarray(zero).astype(int) - np.asarray(image).astype(int)
    assert np.abs(difference).mean() < 2


def test_indices_map_coding_has_no_decode_z(variants: Variants) -> None:
    codec = variants.codec("indices_map")
    with pytest.raises(ValueError, match="no hyper-latent"):
        codec.decode_z(codec.compress(fixed_image(16, 16), 0))


def test_codec_is_pickled_and_copied_by_its_files(
    variants: Variants, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "mine.safetensors"
    file.write_bytes(Path(variants.weights("categorical")).read_bytes())
    monkeypatch.chdir(tmp_path)
    codec = glc.load("mine.safetensors", "cpu", precision="float32", memory="2GB")
    image = fixed_image(40, 33)
    data = codec.compress(image, 50)
    pickled = pickle.dumps(codec)
    assert len(pickled) < 1000  # the name of the file, not its tensors
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    for other in (pickle.loads(pickled), copy.copy(codec), copy.deepcopy(codec)):
        assert other.compress(image, 50) == data
        assert (other.device, other.networks.precision) == (codec.device, codec.networks.precision)
        assert other.networks.memory == codec.networks.memory == 2_000_000_000
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        assert pool.submit(codec.compress, image, 50).result() == data
    file.write_bytes(Path(variants.weights("factorized")).read_bytes())
    with pytest.raises(glc.WeightsError, match=r"mine\.safetensors: holds another codec than when"):
        pickle.loads(pickled)
    file.unlink()
    with pytest.raises(glc.WeightsError, match=r"mine\.safetensors: no such weights file"):
        pickle.loads(pickled)
    with pytest.raises(TypeError, match=r"of weights in memory .* use glc\.load"):
        copy.deepcopy(glc.Codec(codec.weights))


BLOCKED = """
import sys
class Blocker:
    names = {"lightning", "hydra", "omegaconf", "wandb", "torchmetrics", "torchvision", "lpips", "webdataset",
             "matplotlib", "scipy", "skimage", "sklearn"}
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in self.names:
            raise ImportError(name)
sys.meta_path.insert(0, Blocker())
import glc
codec = glc.load(sys.argv[1])
data = codec.compress(sys.argv[2], target_bpp=0.9)
codec.decompress(data).save(sys.argv[4])
codec.decode_z(data)
open(sys.argv[3], "wb").write(codec.from_symbols(codec.symbols(data), (64, 100), codec.rate_index(25)))
loaded = {name for name in sys.modules if name.startswith(("glc.training", "glc.losses", "glc.metrics"))}
assert not loaded, loaded
"""


def test_codec_works_without_the_training_stack(variants: Variants, tmp_path: Path) -> None:
    Image.fromarray(fixed_image(64, 100)).save(tmp_path / "in.png")
    names = ("in.png", "f", "out.png")
    done = fresh(["-c", BLOCKED, variants.weights("categorical"), *(tmp_path / name for name in names)])
    assert done.returncode == 0, done.stderr
    data = (tmp_path / "f").read_bytes()
    codec = variants.codec("categorical")
    assert codec.from_symbols(codec.symbols(data), (64, 100), codec.rate_index(25)) == data
    with Image.open(tmp_path / "out.png") as image:
        assert image.size == (100, 64)


@pytest.fixture(autouse=True)
def no_leaks() -> Iterator[None]:
    """Nothing here may change how torch runs for the others."""
    before = torch.get_num_threads(), torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    yield
    assert before == (torch.get_num_threads(), torch.is_grad_enabled(), torch.is_inference_mode_enabled())
