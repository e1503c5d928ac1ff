"""Memory-mapped weights: pages that are read and released, and copy-on-write."""

import copy
import errno
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import glc
from glc.codec import bitstream
from glc.codec.runtime import networks
from glc.codec.runtime.networks import ImageNetworks
from glc.codec.runtime.resources import choose_precision
from glc.codec.weights import mmap
from glc.codec.weights.file import read_weights
from glc.codec.weights.mmap import MappedFile, bytes_to_read
from glc.codec.weights.variants import save_variant
from tests.codec.fixed_model import fixed_codec_weights, fixed_image
from tests.programs import fresh

PAGE = 4096
MANY = 1 << 20
"""Elements: 4 MB, far more than the system reads ahead into a mmap."""

only_linux = pytest.mark.skipif(not Path("/proc/self/pagemap").exists(), reason="needs Linux's pagemap")
pytestmark = pytest.mark.skipif(not mmap.CAN_MAP, reason="files are not mapped here")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return fixed_codec_weights(tmp_path / "fixed.safetensors")


@pytest.fixture
def large(tmp_path: Path) -> Path:
    path = tmp_path / "large.safetensors"
    tensors = {name: torch.full((MANY,), float(i)) for i, name in enumerate("abc")}
    save_file({**tensors, "half": torch.arange(5).half(), "flag": torch.tensor(True)}, path)
    return path


def resident(tensor: Tensor) -> float:
    """Return which part of a tensor's pages this process holds."""
    first, count = tensor.data_ptr() // PAGE + 1, tensor.nbytes // PAGE - 2
    with open("/proc/self/pagemap", "rb") as pages:
        pages.seek(8 * first)
        found = np.frombuffer(pages.read(8 * count), np.uint64)
    return float((found >> np.uint64(63)).mean())


def test_mapped_tensors_equal_the_file(large: Path) -> None:
    found, expected = MappedFile(large), load_file(large)
    assert found.tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found.tensors[name], tensor)
        assert found.tensors[name].dtype == tensor.dtype
        assert found.holds(found.tensors[name]) == (name in "abc")


@only_linux
def test_only_used_pages_take_memory_until_release(large: Path) -> None:
    file = MappedFile(large)
    a, b, c = (file.tensors[name] for name in "abc")
    assert max(resident(t) for t in (a, b, c)) < 0.1  # the header and what the system reads ahead of it
    assert b.sum() == MANY
    assert resident(b) == 1
    assert resident(a) < 0.1 > resident(c)
    file.release()
    assert resident(b) == 0
    assert b.sum() == MANY


@only_linux
def test_writes_are_kept_in_memory_and_not_in_the_file(large: Path) -> None:
    before = large.read_bytes()
    file = MappedFile(large)
    file.tensors["b"].numpy()[MANY // 2] = 7.0  # past torch's own count of changes
    file.release()
    assert file.tensors["b"][MANY // 2] == 7
    assert file.tensors["b"].sum() == MANY + 6
    assert large.read_bytes() == before
    assert MappedFile(large).tensors["b"].sum() == MANY


def test_without_pagemap_nothing_is_released(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError

    file = MappedFile(large)
    file.tensors["a"].fill_(3)
    monkeypatch.setattr("builtins.open", refuse)
    file.release()
    assert file.tensors["a"].sum() == 3 * MANY


def test_locked_memory_is_kept(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Locked:
        def madvise(self, option: int) -> None:
            raise OSError(errno.EINVAL, "Invalid argument")

    file = MappedFile(large)
    monkeypatch.setattr(file, "_memory", Locked())
    monkeypatch.setattr(file, "_written", lambda: False)
    file.release()
    assert file.tensors["b"].sum() == MANY


def test_codecs_map_the_file_and_training_copies_it(file: Path) -> None:
    codec = glc.load(file, "cpu")
    (mapped,) = codec.weights.files
    assert all(mapped.holds(parameter) for parameter in codec.model.parameters())
    own = read_weights(file)
    assert not own.files
    expected = load_file(file)
    for weights in (own, codec.weights):
        state = weights.model.state_dict()
        assert state.keys() == expected.keys()
        assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())


def without_memory(network: nn.Module) -> None:
    """Take the values of a network away: what uses them fails."""
    for parameter in network.parameters():
        parameter.data = torch.empty(0)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_encoding_does_not_touch_D_nor_decoding_E(file: Path, precision: str) -> None:
    whole, half = (glc.load(file, "cpu", precision=precision) for _ in range(2))
    image = fixed_image(70, 50)
    data = whole.compress(image)
    without_memory(half.model.decoder)
    assert half.compress(image) == data
    half = glc.load(file, "cpu", precision=precision)
    without_memory(half.model.encoder)
    assert half.decompress(data).tobytes() == whole.decompress(data).tobytes()


@only_linux
def test_pages_are_released_between_calls(file: Path, tmp_path: Path) -> None:
    own = read_weights(file)
    part = tmp_path / "part.safetensors"
    save_variant(part, "encoder", own.model.encoder.state_dict(), own.description["encoder"], own.fingerprint)
    codec = glc.load(file, "cpu", encoder=part)
    assert len(codec.weights.files) == 2

    def held() -> list[float]:
        return [resident(torch.frombuffer(file._memory, dtype=torch.uint8)) for file in codec.weights.files]

    image = fixed_image(70, 50)
    data = codec.compress(image)
    symbols, (header, payload) = codec.symbols(data), bitstream.unpack(data)

    def refuse() -> None:
        with pytest.raises(glc.CorruptFileError):
            codec.decompress(bitstream.pack(header, payload + bytes(range(16))))

    for call in (
        lambda: None,
        lambda: codec.compress(image),
        lambda: codec.decompress(data),
        lambda: codec.symbols(data),
        lambda: codec.from_symbols(symbols, (70, 50), codec.rate_index(50)),
        lambda: codec.decode_z(data),
        refuse,
    ):
        call()
        assert held() == [0, 0]
    for parameter in codec.model.parameters():
        parameter.sum()
    assert min(held()) > 0


def test_a_loaded_file_may_be_replaced_and_deleted(file: Path, tmp_path: Path) -> None:
    image = fixed_image(70, 50)
    expected = glc.load(file, "cpu").compress(image)
    codec = glc.load(file, "cpu")
    fixed_codec_weights(file, seed=1)
    assert codec.compress(image) == expected
    file.unlink()
    assert codec.compress(image) == expected
    assert codec.decompress(expected).size == (50, 70)


def test_writes_to_a_loaded_model_change_neither_file_nor_later_loads(file: Path) -> None:
    before = file.read_bytes()
    codec, other = glc.load(file, "cpu"), glc.load(file, "cpu")
    data = codec.compress(fixed_image(70, 50))
    plain = codec.decompress(data).tobytes()
    with torch.no_grad():
        for parameter in other.model.decoder.parameters():
            parameter.mul_(0.9)
    changed = other.decompress(data).tobytes()
    assert changed != plain
    assert other.decompress(data).tobytes() == changed  # also after pages were released
    assert file.read_bytes() == before
    assert codec.decompress(data).tobytes() == plain


def test_saving_a_mapped_tensor_saves_only_that_tensor(file: Path, tmp_path: Path) -> None:
    codec, own = glc.load(file, "cpu"), read_weights(file)
    sizes = {}
    for name, model in (("mapped", codec.model), ("own", own.model)):
        torch.save(model.encoder.state_dict(), tmp_path / name)
        sizes[name] = (tmp_path / name).stat().st_size
        state = torch.load(tmp_path / name)
        expected = own.model.encoder.state_dict()
        assert state.keys() == expected.keys()
        assert all(torch.equal(state[key], tensor) for key, tensor in expected.items())
    assert abs(sizes["mapped"] - sizes["own"]) < 0.1 * sizes["own"]


def test_copies_of_weights_are_not_mapped(file: Path) -> None:
    weights = glc.load(file, "cpu").weights
    for copied in (copy.deepcopy(weights), pickle.loads(pickle.dumps(weights))):
        assert not copied.files
        assert not any(weights.files[0].holds(parameter) for parameter in copied.model.parameters())
        assert glc.Codec(copied).compress(fixed_image(8, 8)) == glc.Codec(weights).compress(fixed_image(8, 8))


def test_loading_does_not_load_torchs_compiler(file: Path) -> None:
    program = "import sys, glc; glc.load(sys.argv[1], 'cpu'); print('sympy' in sys.modules)"
    done = fresh(["-c", program, file])
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "False"


def test_unread_weights_count_against_the_memory_limit(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "resident_memory", lambda: 1_000_000)
    codec = glc.load(file, "cpu", memory=50_000_000)
    for network in (codec.model.encoder, codec.model.decoder, codec.model.coder):
        size = sum(parameter.nbytes for parameter in network.parameters())
        assert bytes_to_read(network, codec.weights.files) == size
        assert codec.networks.limit(network) == 44_000_000 - size
    own = glc.Codec(read_weights(file), memory=50_000_000)
    # A tenth is not planned for.
    assert own.networks.limit(own.model.decoder) == 44_000_000


def test_on_a_gpu_pages_are_not_released_per_call(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = glc.load(file, "cpu").weights
    precision = choose_precision("float32", torch.device("cuda"))
    images = ImageNetworks(weights.model, torch.device("cuda"), precision, files=weights.files)
    monkeypatch.setattr(networks, "give_back_freed", lambda: pytest.fail("time is lost"))
    monkeypatch.setattr(MappedFile, "release", lambda _: pytest.fail("time is lost"))
    images.release()


def test_on_windows_nothing_is_mapped(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mmap, "CAN_MAP", False)
    codec = glc.load(file, "cpu")
    assert not codec.weights.files
    image = fixed_image(70, 50)
    monkeypatch.setattr(mmap, "CAN_MAP", True)
    assert codec.compress(image) == glc.load(file, "cpu").compress(image)
