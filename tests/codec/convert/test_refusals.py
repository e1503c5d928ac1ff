"""Inputs that `glc convert` refuses without changing any file."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

import glc
from glc.cli.models import convert as command
from glc.codec.convert.convert import convert
from glc.errors import WeightsError

Edit = Callable[[dict[str, Any]], None]


def run(*words: object) -> Result:
    return CliRunner().invoke(command, [str(word) for word in words])


@pytest.fixture
def refusal(files: dict[str, Path], tmp_path: Path) -> Callable[..., str]:
    """Convert a file after a change of its tensors; return the reason of the refusal."""

    def refusal(kind: str, edit: Edit, *options: str) -> str:
        tensors = torch.load(files[kind], weights_only=True)
        edit(tensors)
        torch.save(tensors, tmp_path / "changed.pth")
        result = run(tmp_path / "changed.pth", tmp_path / "out" / "x.safetensors", *options)
        assert result.exit_code != 0
        assert isinstance(result.exception, WeightsError)
        assert not (tmp_path / "out").exists()
        message = str(result.exception)
        assert message.startswith(f"{tmp_path / 'changed.pth'}: ")
        return message

    return refusal


def test_tensors_that_do_not_fit_are_named(refusal: Callable[..., str]) -> None:
    def missing(tensors: dict[str, Any]) -> None:
        for name in [n for n in tensors if n.startswith("hyper_enc.0.")]:
            del tensors[name]

    first, number = "hyper_enc.0.block.0.conv1.0.weight, hyper_enc.0.block.0.conv1.0.bias", "and 7 more"
    message = refusal("glc", missing)
    assert f"not a GLC image model: missing: {first}" in message
    assert message.endswith(number)

    message = refusal("glc", lambda t: t.update({"video.weight": torch.zeros(3)}))
    assert message.endswith("unexpected: video.weight")

    message = refusal("taming", lambda t: t.update({"encoder.mid.attn_1.q.weight": torch.zeros(4, 5)}))
    assert message.endswith("of another shape: encoder.mid.attn_1.q.weight is [4, 5], not [128, 128, 1, 1]")

    message = refusal("codeformer", lambda t: t.pop("quantize.embedding.weight"))
    assert "missing: quantize.embedding.weight" in message

    # A network that may be absent is absent as a whole.
    message = refusal("glc", lambda t: t.pop("code_pred_loss.feat_emb.bias"))
    assert message.endswith("missing: code_pred_loss.feat_emb.bias")

    # Without the tensors that tell the sizes, too.
    assert "missing: q_enc" in refusal("glc", lambda t: t.pop("q_enc"))
    assert "q_enc is [], not" in refusal("glc", lambda t: t.update(q_enc=torch.tensor(1.0)))


def test_invalid_values_are_named(refusal: Callable[..., str]) -> None:
    def edit(tensors: dict[str, Any]) -> None:
        tensors["decoder.conv_out.bias"][1] = float("nan")

    assert "decoder.conv_out.bias has values that are not finite real numbers" in refusal("taming", edit)
    whole = torch.zeros(3, dtype=torch.long)
    message = refusal("taming", lambda t: t.update({"decoder.conv_out.bias": whole}))
    assert "decoder.conv_out.bias has values that are not finite real numbers" in message


def test_unknown_layout_and_wrong_kind_are_refused(refusal: Callable[..., str]) -> None:
    def rename(tensors: dict[str, Any]) -> None:
        for name in list(tensors):
            tensors[f"x.{name}"] = tensors.pop(name)

    message = refusal("taming", rename)
    assert "unknown layout (supported: glc, taming, codeformer, and checkpoints of glc)" in message
    assert "x.decoder.conv_in.bias" in message
    message = refusal("taming", lambda t: None, "--kind", "codeformer")
    assert "not a CodeFormer VQGAN: missing: encoder.blocks.0.weight" in message
    message = refusal("taming", lambda t: None, "--kind", "lightning")
    assert "is not a training checkpoint of glc, contrary to --kind lightning" in message


@pytest.mark.parametrize("shape", [(0, 3, 3, 3), (7, 3, 3, 3), (2**40, 3, 3, 3)])
def test_huge_sizes_are_refused_before_allocation(
    refusal: Callable[..., str], shape: tuple[int, ...]
) -> None:
    name = "vqgan.encoder.blocks.0.weight"
    message = refusal("glc", lambda t: t.update({name: torch.zeros(1).expand(shape)}))
    assert "not a GLC image model" in message or "the shapes do not fit a glc network" in message


def test_huge_block_numbers_are_not_counted_up_to(refusal: Callable[..., str]) -> None:
    name = "encoder.down.0.block.1000000000.conv1.weight"
    assert name in refusal("taming", lambda t: t.update({name: torch.zeros(1, 1, 3, 3)}))


def test_an_existing_file_is_kept(files: dict[str, Path], tmp_path: Path) -> None:
    destination = tmp_path / "x.safetensors"
    destination.write_text("mine")
    with pytest.raises(FileExistsError, match=r"x\.safetensors: exists; replace it with --force"):
        convert(files["glc"], destination)
    assert destination.read_text() == "mine"
    assert run(files["glc"], destination, "--force").exit_code == 0
    assert glc.load(destination, "cpu")
    with pytest.raises(WeightsError, match="is the source file"):
        convert(destination, destination, force=True)
    with pytest.raises(WeightsError, match="already a weights file of glc"):
        convert(destination, tmp_path / "y.safetensors")
    with pytest.raises(WeightsError, match="is a folder"):
        convert(files["glc"], tmp_path)


@pytest.mark.parametrize("kind", ["taming", "glc"])
def test_a_failure_leaves_nothing_half_written(
    kind: str, files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(tensors: object, path: Path, metadata: object) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("glc.codec.weights.file.save_file", fail)
    (tmp_path / "x.safetensors").write_bytes(b"old")
    with pytest.raises(OSError, match="No space"):
        convert(files[kind], tmp_path / "x.safetensors", force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]
    assert (tmp_path / "x.safetensors").read_bytes() == b"old"
