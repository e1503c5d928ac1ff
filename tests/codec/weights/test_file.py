"""The weights file: coverage of its fingerprints, and refusal of invalid files."""

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

import glc
from glc.codec.codec import Codec
from glc.codec.entropy.tables import Table, Tables, gaussian_tables, index_table
from glc.codec.weights.file import (
    FORMAT,
    AutoencoderLabel,
    CodecLabel,
    Header,
    Label,
    TrainingLabel,
    VariantLabel,
    build_model,
    decoder_digest,
    fingerprints,
    kind_of,
    open_weights,
    read_label,
    read_weights,
    save,
    save_weights,
)
from glc.errors import WeightsError
from tests.codec.fixed_model import CODES, fixed_codec_weights, fixed_description, fixed_image

KINDS: list[dict[str, Any]] = [
    {},
    {"hyper": "factorized"},
    {"coder": "indices_map"},
]
LABELS: list[Label] = [
    CodecLabel(fixed_description(), gaussian_tables(), [{"lmbda": 1.5}, {"lmbda": None}]),
    VariantLabel("encoder", {"_target_": "x.Y", "a": [1]}, "0" * 64, {"stage": "test"}),
    TrainingLabel(["quantizer", "vq_encoder"], "1" * 64),
    AutoencoderLabel({"_target_": "x.Y"}, "a VQGAN"),
]
ENCODER_ONLY = re.compile(r"encoder\.|coder\.analysis\.|coder\.hyper\.analysis\.")

Edit = Callable[[dict[str, Tensor], dict[str, str]], None]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fixed_codec_weights(tmp_path_factory.mktemp("weights") / "fixed.safetensors")


def contents(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with safe_open(path, framework="pt") as opened:
        return load_file(path), dict(opened.metadata())


@pytest.fixture
def rewrite(file: Path, tmp_path: Path) -> Callable[[Edit], Path]:
    """Write the file again after an edit, with the fingerprints of before."""

    def change(edit: Edit) -> Path:
        tensors, metadata = contents(file)
        edit(tensors, metadata)
        save_file(tensors, tmp_path / "changed.safetensors", metadata)
        return tmp_path / "changed.safetensors"

    return change


def changed(tensor: Tensor) -> Tensor:
    """Return a tensor of which one bit of the last element differs."""
    out = tensor.clone().flatten()
    out.view(torch.uint8)[-1 if tensor.dtype == torch.bool else -4] ^= 1
    return out.view_as(tensor)


def test_fixed_codec_is_platform_independent(file: Path) -> None:
    metadata = contents(file)[1]
    assert metadata["fingerprint"].startswith("8731f5e294d558a9")
    assert metadata["encoder_fingerprint"].startswith("f9feac9c218c1ab6")


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_each_tensor_changes_only_its_sides_fingerprint(kind: dict[str, Any], tmp_path: Path) -> None:
    weights = read_weights(fixed_codec_weights(tmp_path / "a.safetensors", **kind))
    state = weights.model.state_dict()
    before = fingerprints(state, weights.description, weights.tables)
    sides = set()
    for name, tensor in state.items():
        after = fingerprints({**state, name: changed(tensor)}, weights.description, weights.tables)
        encoder_only = ENCODER_ONLY.match(name) is not None
        sides.add(encoder_only)
        assert (after["fingerprint"] == before["fingerprint"]) is encoder_only, name
        assert (after["encoder_fingerprint"] != before["encoder_fingerprint"]) is encoder_only, name
    assert sides == {True, False}


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_decoding_does_not_use_encoder_tensors(kind: dict[str, Any], tmp_path: Path) -> None:
    weights = read_weights(fixed_codec_weights(tmp_path / "a.safetensors", **kind))
    codec = Codec(weights)
    data = codec.compress(fixed_image(70, 50), 100)
    symbols, image = codec.symbols(data), codec.decompress(data)
    with torch.no_grad():
        for name, tensor in weights.model.state_dict().items():
            if ENCODER_ONLY.match(name):
                tensor.fill_(torch.nan)
    assert codec.symbols(data) == symbols
    assert codec.decompress(data).tobytes() == image.tobytes()


def test_names_types_and_shapes_are_part_of_the_fingerprint(file: Path) -> None:
    weights = read_weights(file)
    state = weights.model.state_dict()
    before = fingerprints(state, weights.description, weights.tables)["fingerprint"]
    name = "decoder.blocks.0.weight"
    tensor = state[name]
    others: list[dict[str, Tensor]] = [
        {k: v for k, v in state.items() if k != name},
        {**state, "decoder.more": tensor},
        {("decoder.renamed" if k == name else k): v for k, v in state.items()},
        {**state, name: tensor.view(torch.int32)},
        {**state, name: tensor.flatten()},
    ]
    for other in others:
        assert fingerprints(other, weights.description, weights.tables)["fingerprint"] != before


def test_tables_and_description_are_part_of_the_fingerprint(file: Path) -> None:
    weights = read_weights(file)
    state, tables = weights.model.state_dict(), weights.tables
    before = fingerprints(state, weights.description, tables)

    first = list(tables.y[40].frequencies)
    middle = len(first) // 2 - 1
    first[middle], first[-1] = first[middle] - 1, first[-1] + 1
    moved = Table(tables.y[40].low, tuple(first))
    for other in (
        Tables(tables.thresholds, (*tables.y[:40], moved, *tables.y[41:]), tables.z),
        Tables((*tables.thresholds[:-1], tables.thresholds[-1] + 1), tables.y, tables.z),
        Tables(tables.thresholds, tables.y, (moved,)),
    ):
        after = fingerprints(state, weights.description, other)
        assert after["fingerprint"] != before["fingerprint"]
        assert after["encoder_fingerprint"] == before["encoder_fingerprint"]

    for part, key, value in (
        ("decoder", "window", 9),
        ("coder", "num_rates", 5),
        ("decoder", "norm", "group"),
    ):
        description = copy.deepcopy(dict(weights.description))
        description[part][key] = value
        after = fingerprints(state, description, tables)
        assert after["fingerprint"] != before["fingerprint"]
        assert after["encoder_fingerprint"] == before["encoder_fingerprint"]


def test_files_of_another_encoder_stay_decodable(file: Path, tmp_path: Path) -> None:
    weights = read_weights(file)
    state = {
        k: v.flip(0).contiguous() if ENCODER_ONLY.match(k) else v
        for k, v in weights.model.state_dict().items()
    }
    description = copy.deepcopy(dict(weights.description))
    description["encoder"]["window"] = 4
    save_weights(tmp_path / "other.safetensors", state, description, weights.tables, weights.rates)
    codec, other = Codec(weights), glc.load(tmp_path / "other.safetensors", "cpu")
    data = other.compress(fixed_image(64, 64))
    assert data != codec.compress(fixed_image(64, 64))
    assert codec.symbols(data) == other.symbols(data)


def test_the_fingerprint_does_not_depend_on_order(file: Path, tmp_path: Path) -> None:
    def backwards(value: Any) -> Any:
        return {k: backwards(value[k]) for k in reversed(value)} if isinstance(value, dict) else value

    weights = read_weights(file)
    tensors, metadata = contents(file)
    reordered = backwards(dict(weights.description))
    assert list(reordered) != list(weights.description)
    assert fingerprints(backwards(tensors), reordered, weights.tables)["fingerprint"] == weights.fingerprint
    save_file(backwards(tensors), tmp_path / "b.safetensors", backwards(metadata))
    assert read_weights(tmp_path / "b.safetensors").fingerprint == weights.fingerprint


def test_additional_metadata_are_ignored(rewrite: Callable[[Edit], Path], file: Path) -> None:
    weights = read_weights(rewrite(lambda tensors, metadata: metadata.update(note="from Tuesday")))
    assert weights.fingerprint == read_weights(file).fingerprint


def test_save_read_round_trip(file: Path, tmp_path: Path) -> None:
    weights = read_weights(file)
    assert [rate_index["lmbda"] for rate_index in weights.rates] == [1, 2, 4, 8]
    save_weights(
        tmp_path / "again.safetensors",
        weights.model.state_dict(),
        weights.description,
        weights.tables,
        weights.rates,
    )
    again = read_weights(tmp_path / "again.safetensors")
    assert (again.tables, again.rates, again.description, again.fingerprint) == (
        weights.tables,
        weights.rates,
        weights.description,
        weights.fingerprint,
    )
    for (name, found), expected in zip(
        again.model.state_dict().items(), weights.model.state_dict().values(), strict=True
    ):
        assert torch.equal(found, expected), name
    assert not again.model.training


def test_half_precision_is_read_exactly(file: Path, tmp_path: Path) -> None:
    weights = read_weights(file)
    state = {k: v.half() if v.is_floating_point() else v for k, v in weights.model.state_dict().items()}
    path = tmp_path / "half.safetensors"
    save_weights(path, state, weights.description, weights.tables, weights.rates)
    assert path.stat().st_size < 0.6 * file.stat().st_size + 60_000  # the tables are not halved
    half = read_weights(path)
    assert half.fingerprint != weights.fingerprint
    for name, tensor in half.model.state_dict().items():
        assert tensor.dtype in (torch.float32, torch.bool)
        assert torch.equal(tensor, state[name].to(tensor.dtype))
    codec = Codec(half)
    data = codec.compress(fixed_image(64, 64), 100)
    assert codec.from_symbols(codec.symbols(data), (64, 64), codec.rate_index(100)) == data
    with pytest.raises(glc.WrongWeightsError):
        Codec(weights).decompress(data)


@pytest.mark.parametrize("side", ["decoder", "encoder"])
def test_corruption_of_any_tensor_is_detected(rewrite: Callable[[Edit], Path], file: Path, side: str) -> None:
    names = [
        name for name in contents(file)[0] if (ENCODER_ONLY.match(name) is not None) == (side == "encoder")
    ]
    stated = "encoder_fingerprint" if side == "encoder" else "fingerprint"
    for name in names[:: len(names) // 6]:
        path = rewrite(lambda tensors, _, name=name: tensors.update({name: changed(tensors[name])}))  # type: ignore[misc]
        with pytest.raises(WeightsError, match=rf"changed.safetensors: corrupt: .* its {stated}"):
            read_weights(path)


def test_flipped_bytes_are_detected(file: Path, tmp_path: Path) -> None:
    whole = file.read_bytes()
    path = tmp_path / "flipped.safetensors"
    data_begins = 8 + int.from_bytes(whole[:8], "little")
    for position in (*range(data_begins, len(whole), (len(whole) - data_begins) // 8), len(whole) - 1):
        changed = bytearray(whole)
        changed[position] ^= 0x40
        path.write_bytes(changed)
        with pytest.raises(WeightsError, match=r"flipped\.safetensors: "):
            read_weights(path)


def test_truncated_files_are_refused(file: Path, tmp_path: Path) -> None:
    whole = file.read_bytes()
    path = tmp_path / "cut.safetensors"
    for length in (0, 1, 7, 8, 9, 1000, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(WeightsError, match=r"cut\.safetensors: not a safetensors file"):
            read_weights(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.safetensors").write_text("not weights\n" * 10)
    (tmp_path / "folder.safetensors").mkdir()
    save_file({"a": torch.zeros(2)}, tmp_path / "plain.safetensors")
    for name, complaint in (
        ("text", "not a safetensors file"),
        ("folder", "not a safetensors file"),
        ("plain", "is not a weights file of glc; write one with `glc export`"),
        ("missing", "no such file"),
    ):
        for read in (read_weights, read_label):
            with pytest.raises(WeightsError, match=rf"{name}\.safetensors: {complaint}"):
                read(tmp_path / f"{name}.safetensors")


@pytest.mark.parametrize("label", LABELS, ids=lambda label: type(label).__name__)
def test_label_round_trip(label: Label, tmp_path: Path) -> None:
    path = tmp_path / "some.safetensors"
    save(path, {"a": torch.arange(3.0)}, label)
    found = read_label(path)
    assert type(found) is type(label)
    assert found.metadata() == label.metadata()


@pytest.mark.parametrize("label", LABELS, ids=lambda label: type(label).__name__)
def test_wrong_kind_error_says_how_to_use_the_file(label: Label, tmp_path: Path) -> None:
    path = tmp_path / "some.safetensors"
    save(path, {"a": torch.arange(3.0)}, label)
    for kind in (CodecLabel, VariantLabel, TrainingLabel, AutoencoderLabel):
        if not isinstance(label, kind):
            with pytest.raises(WeightsError, match=r"some\.safetensors: is not a thing but .*: (use|train)"):
                open_weights(path, kind, "a thing")
    if isinstance(label, VariantLabel):
        with pytest.raises(WeightsError, match="one encoder: use it with --encoder"):
            read_weights(path)


def test_files_of_a_newer_format_are_refused(tmp_path: Path) -> None:
    for label in LABELS:
        if label.FORMAT is not None:
            metadata = {**label.metadata(), "format": str(FORMAT + 1)}
            with pytest.raises(WeightsError, match=rf"some: format {FORMAT + 1} is newer"):
                kind_of(Header("some", metadata))


def test_the_digests_of_each_kind_are_those_of_version_0_1(file: Path) -> None:
    weights = read_weights(file)
    state = weights.model.decoder.state_dict()
    variant = VariantLabel("decoder", weights.description["decoder"], weights.fingerprint)
    assert variant.digests(state)["part_fingerprint"].startswith("15617499f14dca2d")
    assert decoder_digest(state).startswith("0a00f49a708a50b5")


def test_changed_tables_are_detected(rewrite: Callable[[Edit], Path]) -> None:
    def edit(_: dict[str, Tensor], metadata: dict[str, str]) -> None:
        tables = json.loads(metadata["tables"])
        tables["thresholds"][-1] += 1
        metadata["tables"] = json.dumps(tables)

    with pytest.raises(WeightsError, match=r"changed.safetensors: corrupt: .* its fingerprint"):
        read_weights(rewrite(edit))


def test_changed_descriptions_are_detected(rewrite: Callable[[Edit], Path]) -> None:
    def edit(_: dict[str, Tensor], metadata: dict[str, str]) -> None:
        description = json.loads(metadata["model"])
        description["decoder"]["window"] = 3
        metadata["model"] = json.dumps(description)

    with pytest.raises(WeightsError, match=r"changed.safetensors: corrupt: .* its fingerprint"):
        read_weights(rewrite(edit))


@pytest.mark.parametrize("key", ["format", "model", "tables", "rates", "fingerprint", "encoder_fingerprint"])
def test_each_metadata_key_is_required(rewrite: Callable[[Edit], Path], key: str) -> None:
    def edit(_: dict[str, Tensor], metadata: dict[str, str]) -> None:
        del metadata[key]

    with pytest.raises(WeightsError, match=r"changed\.safetensors: "):
        read_weights(rewrite(edit))


@pytest.mark.parametrize("key", ["format", "model", "tables", "rates", "fingerprint", "encoder_fingerprint"])
@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[]", "null", "NaN", "3", '"x"', "[" * 5000, "²", "-1", "\0", "[1, 2, 3]"),
        '{"_target_": "glc.models.glc.GLC"}',
        '{"_target_": "glc.models.quantizer.VectorQuantizer", "size": 4, "dim": 2}',
        '{"_target_": "glc.models.quantizer.VectorQuantizer", "size": -4, "dim": 2}',
        '{"_target_": "glc.models.glc.GLC", "encoder": 1, "decoder": 2, "coder": 3}',
        '{"_target_": ["glc.models.glc.GLC"]}',
    ],
    ids=repr,
)
def test_invalid_metadata_are_refused(rewrite: Callable[[Edit], Path], key: str, text: str) -> None:
    with pytest.raises(WeightsError, match=r"changed\.safetensors: "):
        read_weights(rewrite(lambda _, metadata: metadata.update({key: text})))


def test_tensors_must_match_the_description(rewrite: Callable[[Edit], Path]) -> None:
    with pytest.raises(WeightsError, match=r"changed\.safetensors: .*do not fit.*decoder\.blocks\.0\.weight"):
        read_weights(rewrite(lambda tensors, _: tensors.__delitem__("decoder.blocks.0.weight")))
    with pytest.raises(WeightsError, match=r"changed\.safetensors: .*do not fit.*stranger"):
        read_weights(rewrite(lambda tensors, _: tensors.update(stranger=torch.zeros(1))))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e9])
@pytest.mark.parametrize(
    "layer", ["context.reduction", "hyper.synthesis.0.conv", "context.adaptors.2.1.project"]
)
def test_weights_of_integer_networks_must_be_in_range(
    file: Path, tmp_path: Path, layer: str, value: float
) -> None:
    weights = read_weights(file)
    state = weights.model.state_dict()
    name = f"coder.{layer}.weight"
    state[name] = state[name].clone()
    state[name].view(-1)[3] = value
    path = tmp_path / "odd.safetensors"
    save_weights(path, state, weights.description, weights.tables, weights.rates)
    with pytest.raises(WeightsError, match=rf"cannot encode files: .*{re.escape(layer[-6:])}"):
        glc.load(path, "cpu")


def test_encoder_and_decoder_downsampling_must_agree(tmp_path: Path) -> None:
    description = fixed_description()
    description["encoder"]["stem"] = 2
    model = build_model("odd", description)
    path = tmp_path / "odd.safetensors"
    save_weights(path, model.state_dict(), description, gaussian_tables(), [{}] * 4)
    with pytest.raises(WeightsError, match="downsampling"):
        glc.load(path, "cpu")


@pytest.mark.parametrize("kind", [{}, {"hyper": "factorized"}], ids=str)
def test_tables_of_z_must_fit_the_hyperprior(kind: dict[str, Any], tmp_path: Path) -> None:
    weights = read_weights(fixed_codec_weights(tmp_path / "a.safetensors", **kind))
    some = weights.tables.y[0]
    shifted = Table(1, index_table(torch.ones(CODES)).frequencies)
    for z in ([some], [some] * 15, [some] * 17, [shifted]):
        tables = Tables(weights.tables.thresholds, weights.tables.y, tuple(z))
        path = tmp_path / "odd.safetensors"
        save_weights(path, weights.model.state_dict(), weights.description, tables, weights.rates)
        with pytest.raises(
            WeightsError, match=r"cannot encode files: .*(indices 0 to 31|each of 16 channels)"
        ):
            glc.load(path, "cpu")


@pytest.mark.parametrize(
    ("key", "value", "complaint"),
    [
        ("model", "[" * 600 + "]" * 600, "changed.safetensors: "),
        ("format", "9" * 5000, "key 'format' is missing or invalid"),
        ("rates", "[1, 2, 3, 4]", "'rates' must describe the rate points"),
        ("rates", "[{}, {}, {}]", "'rates' must describe 4 rate points"),
        ("tables", '{"thresholds": [], "y": [], "z": ""}', "invalid frequency tables"),
    ],
)
def test_malicious_metadata_raise_WeightsError(tmp_path: Path, key: str, value: str, complaint: str) -> None:
    source = fixed_codec_weights(tmp_path / "whole.safetensors")
    with safe_open(source, framework="pt") as file:
        metadata = dict(file.metadata())
    save_file(load_file(source), tmp_path / "changed.safetensors", {**metadata, key: value})
    with pytest.raises(WeightsError, match=complaint):
        read_weights(tmp_path / "changed.safetensors")


def test_non_integer_weights_error_names_file_and_layer(tmp_path: Path) -> None:
    source = fixed_codec_weights(tmp_path / "whole.safetensors")
    weights = read_weights(source)
    convolution = weights.model.coder.context.reduction
    torch.nn.init.constant_(convolution.weight, 1e6)
    with pytest.raises(WeightsError, match=r"whole\.safetensors: .*coder\.context\.reduction"):
        Codec(weights)
