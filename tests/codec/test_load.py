"""The choice between PyTorch and ONNX Runtime."""

import sys
from pathlib import Path

import pytest

import glc
from glc.codec.codec import Codec
from glc.codec.load import FEW_FILES, FEW_PIXELS, choose_backend
from glc.codec.onnx.codec import OnnxCodec
from tests.codec.fixed_model import fixed_image
from tests.codec.variants import Variants
from tests.programs import fresh

TORCH = sys.modules["torch"]


@pytest.fixture
def without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)


def test_auto_is_pytorch_where_it_is_imported(variants: Variants) -> None:
    assert choose_backend(files=1) == choose_backend() == "torch"
    file = variants.weights("categorical")
    assert isinstance(glc.load(file, "cpu"), Codec)
    assert isinstance(glc.load(file, "cpu", backend="onnx"), OnnxCodec)


def test_auto_is_onnx_for_commands_on_few_small_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch")
    try:
        assert choose_backend(files=1) == choose_backend(files=FEW_FILES, pixels=FEW_PIXELS) == "onnx"
        assert (
            choose_backend(files=FEW_FILES + 1) == choose_backend(files=1, pixels=FEW_PIXELS + 1) == "torch"
        )
        assert choose_backend() == "torch"
    finally:
        sys.modules["torch"] = TORCH


@pytest.mark.usefixtures("without_torch")
def test_without_pytorch(variants: Variants) -> None:
    assert choose_backend() == choose_backend(files=1000, pixels=1 << 30) == "onnx"
    with pytest.raises(ModuleNotFoundError, match="the backend torch needs PyTorch: pip install"):
        glc.load(backend="torch")
    with pytest.raises(ValueError, match="device 'cuda': the backend onnx runs on the CPU"):
        glc.load(device="cuda")


def test_unknown_backend() -> None:
    with pytest.raises(ValueError, match="backend must be auto, torch or onnx, got 'jax'"):
        glc.load(backend="jax")


INSTALL = "pip install 'glc-codec[torch]'"
NO_TORCH = """
import sys
sys.modules["torch"] = None
from glc.cli import main
main(sys.argv[1:], prog_name="glc")
"""


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (
            "convert photo.png out.safetensors",
            "this command needs PyTorch; run pip install 'glc-codec[torch]'",
        ),
        (
            "compress photo.png --backend torch",
            "the backend torch needs PyTorch: pip install 'glc-codec[torch]'",
        ),
        ("compress photo.png --device cuda", "device 'cuda': the backend onnx runs on the CPU; use torch"),
        (
            "compress photo.png --precision bfloat16",
            "precision bfloat16: the backend onnx computes in float32",
        ),
        ("compress photo.png --optimize-latent 2", "pip install 'glc-codec[eval]'"),
    ],
)
def test_commands_without_pytorch_say_what_is_missing(words: str, complaint: str, tmp_path: Path) -> None:
    from PIL import Image

    Image.fromarray(fixed_image(16, 16)).save(tmp_path / "photo.png")
    done = fresh(["-c", NO_TORCH, *words.split()], folder=tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    assert complaint in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photo.png"]


def test_names_that_need_pytorch_say_so() -> None:
    done = fresh(["-c", "import sys; sys.modules['torch'] = None; import glc; glc.TargetWarning; glc.Codec"])
    assert done.stderr.strip().endswith("glc.Codec needs PyTorch: pip install 'glc-codec[torch]'")
