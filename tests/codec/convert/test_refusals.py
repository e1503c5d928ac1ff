"""Inputs that `glc convert` refuses without changing any file."""

import re
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

Edit = Callable[[dict[str, Any]], object]


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
        name, _, message = str(result.exception).partition(": ")
        assert name == str(tmp_path / "changed.pth")
        return message

    return refusal


def put(name: str, value: Any) -> Edit:
    """Return an edit that sets a tensor, or takes it away."""
    return lambda tensors: tensors.pop(name) if value is None else tensors.update({name: value})


def without_a_block(tensors: dict[str, Any]) -> None:
    for name in [n for n in tensors if n.startswith("hyper_enc.0.")]:
        del tensors[name]


def with_nan(tensors: dict[str, Any]) -> None:
    tensors["decoder.conv_out.bias"][1] = float("nan")


def renamed(tensors: dict[str, Any]) -> None:
    for name in list(tensors):
        tensors[f"x.{name}"] = tensors.pop(name)


QUERY = "encoder.mid.attn_1.q.weight"
BIAS = "decoder.conv_out.bias"


@pytest.mark.parametrize(
    ("kind", "edit", "complaint"),
    [
        (
            "glc",
            without_a_block,
            r"^not a GLC image model: missing: hyper_enc.0.block.0.conv1.0.weight, "
            r"hyper_enc.0.block.0.conv1.0.bias.*and 7 more$",
        ),
        ("glc", put("video.weight", torch.zeros(3)), "unexpected: video.weight$"),
        (
            "taming",
            put(QUERY, torch.zeros(4, 5)),
            rf"of another shape: {QUERY} is \[4, 5\], not \[128, 128, 1, 1\]$",
        ),
        ("codeformer", put("quantize.embedding.weight", None), "missing: quantize.embedding.weight"),
        # A network that may be absent is absent as a whole.
        ("glc", put("code_pred_loss.feat_emb.bias", None), "missing: code_pred_loss.feat_emb.bias$"),
        # Without the tensors that tell the sizes, too.
        ("glc", put("q_enc", None), "missing: q_enc"),
        ("glc", put("q_enc", torch.tensor(1.0)), r"q_enc is \[\], not"),
        ("taming", with_nan, f"{BIAS} has values that are not finite real numbers"),
        ("taming", put(BIAS, torch.zeros(3).long()), f"{BIAS} has values that are not finite real numbers"),
        (
            "taming",
            renamed,
            r"unknown layout \(supported: glc, taming, codeformer, and checkpoints of glc\)"
            r".*x.decoder.conv_in.bias",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    refusal: Callable[..., str], kind: str, edit: Edit, complaint: str
) -> None:
    assert re.search(complaint, refusal(kind, edit))


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ("codeformer", "not a CodeFormer VQGAN: missing: encoder.blocks.0.weight"),
        ("lightning", "is not a training checkpoint of glc, contrary to --kind lightning"),
    ],
)
def test_wrong_kind_is_refused(refusal: Callable[..., str], given: str, complaint: str) -> None:
    assert complaint in refusal("taming", lambda tensors: None, "--kind", given)


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
