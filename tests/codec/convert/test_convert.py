"""Conversion of third-party files to weights files of glc and back."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

import glc
from glc.cli.models import convert as command
from glc.codec import bitstream
from glc.codec.convert.convert import convert, convert_to_official
from glc.codec.convert.layouts import LAYOUTS, FittedLayout, codec_description
from glc.codec.weights.architecture import build
from glc.codec.weights.export import export
from glc.codec.weights.file import read_weights
from glc.errors import WeightsError
from tests.codec.convert.stand_ins import SMALL, layouts, stand_ins
from tests.codec.fixed_model import fixed_image

Edit = Callable[[dict[str, Any]], None]
WIDTH = SMALL.latent_channels
PAPER = {kind: layout.fit() for kind, layout in LAYOUTS.items()}


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def run(*words: object) -> Result:
    return CliRunner().invoke(command, [str(word) for word in words])


@pytest.fixture(scope="module")
def converted(files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("converted")
    for kind, path in files.items():
        convert(path, folder / f"{kind}.safetensors")
    return {kind: folder / f"{kind}.safetensors" for kind in files}


@pytest.mark.parametrize(
    "layout", [*layouts().values(), *PAPER.values()], ids=lambda layout: layout.table.kind
)
def test_tensor_names_map_one_to_one(layout: FittedLayout) -> None:
    for name, description in layout.descriptions.items():
        with torch.device("meta"):
            network = build(description)
        state, names = network.state_dict(), layout.table.names[name]
        table = names(network) if callable(names) else names
        entries = [entry for entry in layout.entries.values() if entry.network == name]
        ours = [entry.name for entry in entries]
        assert len(set(ours)) == len(ours)
        assert set(ours) == {key for key in state if not key.endswith("initialized")}
        assert len({entry.official for entry in entries}) == len(entries)
        # Each name of the table stands for something: none is left over from another structure.
        optional = ("skip", "adaptor")
        used = {key for key in table if any(f"{o}.".startswith(f"{key}.") for o in ours)}
        assert all(key.endswith(optional) for key in table.keys() - used)


WRAPPINGS: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "state_dict": lambda t: {"state_dict": t, "epoch": 3},
    "net": lambda t: {"net": t},
    "net_g": lambda t: {"net_g": {f"module.{k}": v for k, v in t.items()}, "iter": 7},
    "module": lambda t: {f"module.{k}": v for k, v in t.items()},
    "nested": lambda t: {"state_dict": {"net_g": t}, "optimizer": {"state": {0: torch.zeros(3)}}},
    "params_ema": lambda t: {"params": {k: v + 1 for k, v in t.items()}, "params_ema": t},
    "params": lambda t: {"params": t},
    "parameters": lambda t: {k: torch.nn.Parameter(v) for k, v in t.items()},
    "double": lambda t: {k: v.double() for k, v in t.items()},
}


@pytest.mark.parametrize("wrapping", [*WRAPPINGS, "safetensors", "old"])
def test_tensors_are_found_in_nested_containers(
    wrapping: str, files: dict[str, Path], converted: dict[str, Path], tmp_path: Path
) -> None:
    kind = "codeformer" if wrapping.startswith("params") else "glc"
    tensors = torch.load(files[kind], weights_only=True)
    source = tmp_path / "source.pth"
    if wrapping == "safetensors":
        save_file(tensors, source)  # whatever the name
    elif wrapping == "old":
        torch.save(tensors, source, _use_new_zipfile_serialization=False)
    else:
        torch.save(WRAPPINGS[wrapping](tensors), source)
    convert(source, tmp_path / "out.safetensors")
    assert_equal(load_file(tmp_path / "out.safetensors"), load_file(converted[kind]))


@pytest.mark.parametrize("kind", ["glc", "taming", "codeformer"])
def test_converted_file_has_the_size_of_its_parameters(kind: str, converted: dict[str, Path]) -> None:
    layout = layouts()[kind]
    kept = ("encoder", "decoder", "coder") if kind == "glc" else ("encoder", "decoder", "quantizer")
    numbers = sum(torch.Size(e.ours).numel() for e in layout.entries.values() if e.network in kept)
    assert 4 * numbers < converted[kind].stat().st_size < 4 * numbers + 150_000


def test_a_converted_model_is_a_codec(converted: dict[str, Path]) -> None:
    codec = glc.load(converted["glc"], "cpu")
    assert codec.model.num_rates == 4
    assert codec.weights.rates == [{"lmbda": None}] * 4
    image = torch.rand(3, 70, 90, generator=torch.Generator().manual_seed(0))
    files = {codec.compress(image, quality) for quality in (0, 37, 100)}
    assert len(files) == 3
    for data in files:
        rate_index = bitstream.unpack(data)[0].rate_index
        assert codec.from_symbols(codec.symbols(data), (70, 90), rate_index) == data
        assert codec.decompress(data).size == (90, 70)


@pytest.mark.parametrize("kind", ["taming", "codeformer"])
def test_an_autoencoder_is_not_a_codec(kind: str, converted: dict[str, Path]) -> None:
    with safe_open(converted[kind], framework="pt") as file:
        metadata = file.metadata()
    assert json.loads(metadata["model"])["_target_"] == "glc.models.autoencoder.VQAutoencoder"
    assert metadata["converted_from"] == PAPER[kind].table.title
    with pytest.raises(WeightsError, match="is not a codec but a stage-I autoencoder"):
        glc.load(converted[kind], "cpu")


def test_round_trip(files: dict[str, Path], converted: dict[str, Path], tmp_path: Path) -> None:
    lines = convert_to_official(converted["glc"], tmp_path / "back.pth", vars(SMALL))
    assert any("omitted: quantizer" in line for line in lines)
    assert any("strict=False" in line for line in lines)
    theirs, back = (torch.load(path, weights_only=True) for path in (files["glc"], tmp_path / "back.pth"))
    assert all(torch.equal(value, theirs[name]) for name, value in back.items())
    absent = ("vqgan.quantize", "code_pred_loss", "code_pred_pix_loss")
    assert {name for name in theirs if not name.startswith(absent)} == back.keys()

    convert(tmp_path / "back.pth", tmp_path / "again.safetensors")
    one, other = read_weights(converted["glc"]), read_weights(tmp_path / "again.safetensors")
    assert one.fingerprint == other.fingerprint
    assert_equal(other.model.state_dict(), one.model.state_dict())


def training_checkpoint(path: Path, edit: Edit = lambda checkpoint: None) -> dict[str, Tensor]:
    """Write a checkpoint of stage III of the small model; return the tensors of the authors' file for it."""
    layout = layouts()["glc"]
    official = stand_ins(layout)
    for name in official:
        if name.startswith("code_pred_pix_loss"):  # there is one predictor in our training
            official[name] = official[name.replace("_pix_", "_")]
    states = layout.to_networks(official)
    places = {"quantizer": "quantizer", "predictor": "code_loss.predictor"}
    places |= {name: f"model.{name}" for name in ("encoder", "decoder", "coder")}
    state = {f"{place}.{k}": v for name, place in places.items() for k, v in states[name].items()}
    module = {"model": codec_description(layout.descriptions), "lmbda": [1, 2, 4, 8]}
    recipe = {"stage": {"name": "joint", "module": copy.deepcopy(module)}}
    checkpoint = {"glc": {"format": 1, "recipe": recipe}, "state_dict": state}
    edit(checkpoint)
    torch.save(checkpoint, path)
    return official


def test_training_checkpoint_has_all_networks_of_the_authors_layout(tmp_path: Path) -> None:
    official = training_checkpoint(tmp_path / "last.ckpt")
    lines = convert_to_official(tmp_path / "last.ckpt", tmp_path / "glc.pth", vars(SMALL))
    assert not any("omitted" in line for line in lines)
    written = torch.load(tmp_path / "glc.pth", weights_only=True)
    assert_equal(written, official)
    assert type(written) is dict


def test_projected_codebook_is_baked(tmp_path: Path) -> None:
    weight = torch.linspace(-1, 1, WIDTH**2).view(WIDTH, -1)
    projection = {"quantizer.projection.weight": weight, "quantizer.projection.bias": torch.zeros(WIDTH)}

    def edit(checkpoint: dict[str, Any]) -> None:
        checkpoint["state_dict"].update(projection)

    official = training_checkpoint(tmp_path / "last.ckpt", edit)
    convert_to_official(tmp_path / "last.ckpt", tmp_path / "glc.pth", vars(SMALL))
    name = "vqgan.quantize.embedding.weight"
    written = torch.load(tmp_path / "glc.pth", weights_only=True)[name]
    torch.testing.assert_close(written, official[name] @ weight.T)


def test_only_the_natural_architecture_converts_to_the_authors_layout(
    converted: dict[str, Path], tmp_path: Path
) -> None:
    # Of the small stand-in the sizes differ, as the command sees it.
    result = run(converted["glc"], tmp_path / "glc.pth", "--to", "glc")
    assert result.exit_code != 0
    assert "only codecs with the architecture of model=natural" in str(result.exception)
    assert "encoder.blocks.0.bias is [32], there [128]" in str(result.exception)
    for kind in ("taming", "codeformer"):
        with pytest.raises(WeightsError, match="neither a codec's weights file nor a training checkpoint"):
            convert_to_official(converted[kind], tmp_path / "glc.pth")
    assert not (tmp_path / "glc.pth").exists()


@pytest.mark.parametrize(
    ("where", "key", "value", "reason"),
    [
        ("hyper", "normalize", True, "normalises z"),
        ("encoder", "norm", "pixel", "encoder has norm=pixel"),
        ("encoder", "window", 16, "its encoder has window=16, there 32"),
        ("decoder", "window", None, "its decoder has window=null, there 32"),
    ],
)
def test_settings_without_tensors_must_match_too(
    where: str, key: str, value: object, reason: str, tmp_path: Path
) -> None:
    def edit(checkpoint: dict[str, Any]) -> None:
        model = checkpoint["glc"]["recipe"]["stage"]["module"]["model"]
        (model["coder"]["hyper"] if where == "hyper" else model[where])[key] = value

    training_checkpoint(tmp_path / "last.ckpt", edit)
    with pytest.raises(WeightsError, match=reason):
        convert_to_official(tmp_path / "last.ckpt", tmp_path / "glc.pth", vars(SMALL))


def test_training_checkpoints_are_exported(tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    training_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")
    export(tmp_path / "run" / "checkpoints" / "last.ckpt", tmp_path / "exported.safetensors")
    for kind in ("auto", "lightning"):
        assert run(tmp_path / "run", tmp_path / f"{kind}.safetensors", "--kind", kind).exit_code == 0
        found, expected = (read_weights(tmp_path / f"{n}.safetensors") for n in (kind, "exported"))
        assert found.fingerprint == expected.fingerprint
        assert found.rates == [{"lmbda": value} for value in (1, 2, 4, 8)]
    with pytest.raises(WeightsError, match="is a training checkpoint of glc, contrary to --kind taming"):
        convert(tmp_path / "run", tmp_path / "x.safetensors", "taming")


def test_output_lists_found_used_and_omitted_networks(files: dict[str, Path], tmp_path: Path) -> None:
    result = run(files["glc"], tmp_path / "out.safetensors")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert "GLC image model, 792 tensors" in lines[0]
    assert [line.split(",")[0] for line in lines[1:7]] == [
        *("used: encoder", "used: decoder", "used: coder"),
        *("omitted: quantizer", "omitted: predictor", "omitted: pixel_predictor"),
    ]
    size = (tmp_path / "out.safetensors").stat().st_size / 1e6
    assert lines[-1] == f"{tmp_path / 'out.safetensors'}: a codec, {size:.1f} MB"


def test_file_without_training_networks_converts(files: dict[str, Path], tmp_path: Path) -> None:
    tensors = torch.load(files["glc"], weights_only=True)
    kept = {k: v for k, v in tensors.items() if not k.startswith(("code_pred", "vqgan.quantize"))}
    torch.save(kept, tmp_path / "bare.pth")
    result = run(tmp_path / "bare.pth", tmp_path / "out.safetensors")
    assert "not in the file: quantizer (stage I's codebook C" in result.stdout
    assert glc.load(tmp_path / "out.safetensors", "cpu").model.num_rates == 4


def test_sizes_of_other_vqgans_are_detected(tmp_path: Path) -> None:
    # As the f=8 VQGANs of latent diffusion: other levels, a narrow latent.
    sizes: dict[str, Any] = {"channels": 32, "multipliers": (1, 2, 2, 4), "latent_channels": 4, "codes": 16}
    for name, changes in {"f8": {}, "deep": {"num_blocks": 1}, "flat": {"level_attention": False}}.items():
        layout = LAYOUTS["taming"].fit(**{**sizes, **changes})
        torch.save(stand_ins(layout), tmp_path / f"{name}.ckpt")
        convert(tmp_path / f"{name}.ckpt", tmp_path / f"{name}.safetensors")
        with safe_open(tmp_path / f"{name}.safetensors", framework="pt") as file:
            described = json.loads(file.metadata()["model"])
        for network in ("encoder", "decoder", "quantizer"):
            assert described[network] == layout.descriptions[network], (name, network)


def test_images_give_a_converted_codec_tables_per_rate_point(
    files: dict[str, Path], converted: dict[str, Path], tmp_path: Path
) -> None:
    Image.fromarray(fixed_image(64, 128)).save(tmp_path / "photo.png")
    out = tmp_path / "counted.safetensors"
    result = run(files["glc"], out, "--images", tmp_path / "photo.png")
    assert result.exit_code == 0, result.output
    plain, counted = glc.load(converted["glc"], "cpu"), glc.load(out, "cpu")
    assert not plain.weights.tables.z_rates
    assert len(counted.weights.tables.z_rates) == counted.num_rates
    for quality in (0, 50, 100):
        before, after = (codec.compress(fixed_image(64, 128), quality) for codec in (plain, counted))
        assert counted.symbols(after) == plain.symbols(before)
        assert len(after) <= len(before) + 1
    for words, code, message in (
        ((files["taming"], tmp_path / "no"), 1, "not a codec, which --images is for; omit it"),
        ((converted["glc"], tmp_path / "no", "--to", "glc"), 2, "--images cannot be combined with --to glc"),
    ):
        result = run(*words, "--images", tmp_path / "photo.png")
        assert result.exit_code == code
        assert message in str(result.exception) + result.output
    assert not (tmp_path / "no").exists()
