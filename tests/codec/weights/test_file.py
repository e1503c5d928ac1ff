"""The weights file: coverage of its fingerprints, and refusal of invalid files."""

import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import glc
from glc.codec.codec import Codec
from glc.codec.entropy.tables import Table, Tables, gaussian_tables, index_table
from glc.codec.weights.file import (
    Weights,
    build_model,
    decoder_digest,
    fingerprints,
    open_weights,
    read_weights,
    save,
)
from glc.codec.weights.labels import (
    AutoencoderLabel,
    CodecLabel,
    Header,
    Label,
    TrainingLabel,
    VariantLabel,
    kind_of,
    read_label,
)
from glc.errors import WeightsError
from tests.codec.fixed_model import CODES, fixed_description, fixed_image
from tests.codec.reference_weights import ENCODER_PARTS
from tests.codec.variants import Variants

KINDS = ["categorical", "factorized", "indices_map"]
LABELS: dict[str, Label] = {
    "a complete codec: use it with --model": CodecLabel(
        fixed_description(), gaussian_tables(), [{"lmbda": 1.5}, {"lmbda": None}]
    ),
    "one encoder: use it with --encoder": VariantLabel(
        "encoder", {"_target_": "x.Y", "a": [1]}, "0" * 64, {"stage": "test"}
    ),
    "training weights for a codec: use it with init_from=[CODEC,FILE]": TrainingLabel(
        ["quantizer", "vq_encoder"], "1" * 64
    ),
    "a stage-I autoencoder, without a coder: train from it with init_from=FILE": AutoencoderLabel(
        {"_target_": "x.Y"}, "a VQGAN"
    ),
}
"""Labels of every kind, by what a message says of them."""
KEYS = ["format", "model", "tables", "rates", "fingerprint", "encoder_fingerprint"]
READERS = [read_weights, partial(read_weights, mapped=True)]

Rewrite = Callable[..., Path]
Saved = Callable[..., Path]


@pytest.fixture
def file(variants: Variants) -> Path:
    return variants.weights("categorical")


@pytest.fixture
def before(weights: Weights) -> dict[str, str]:
    """The fingerprints of the weights."""
    return digests_of(weights)


def digests_of(weights: Weights, **changes: Any) -> dict[str, str]:
    """Return the fingerprints of weights of which some arguments of `fingerprints` are changed."""
    own = {"state": weights.model.state_dict(), "description": weights.description, "tables": weights.tables}
    return fingerprints(**{**own, **changes})


def changed(tensor: Tensor) -> Tensor:
    """Return a tensor of which one bit of the last element differs."""
    out = tensor.clone().flatten()
    out.view(torch.uint8)[-1 if tensor.dtype == torch.bool else -4] ^= 1
    return out.view_as(tensor)


def test_digests_of_each_kind_are_those_of_version_0_1(weights: Weights, before: dict[str, str]) -> None:
    state = weights.model.decoder.state_dict()
    variant = VariantLabel("decoder", weights.description["decoder"], weights.fingerprint)
    assert before["fingerprint"].startswith("8731f5e294d558a9")
    assert before["encoder_fingerprint"].startswith("f9feac9c218c1ab6")
    assert variant.digests(state)["part_fingerprint"].startswith("15617499f14dca2d")
    assert decoder_digest(state).startswith("0a00f49a708a50b5")


@pytest.mark.parametrize("weights", KINDS, indirect=True)
def test_each_tensor_changes_only_its_sides_fingerprint(weights: Weights, before: dict[str, str]) -> None:
    state = weights.model.state_dict()
    sides = set()
    for name, tensor in state.items():
        after = digests_of(weights, state={**state, name: changed(tensor)})
        encoder_only = name.startswith(ENCODER_PARTS)
        sides.add(encoder_only)
        assert (after["fingerprint"] == before["fingerprint"]) is encoder_only, name
        assert (after["encoder_fingerprint"] != before["encoder_fingerprint"]) is encoder_only, name
    assert sides == {True, False}


@pytest.mark.parametrize("weights", KINDS, indirect=True)
def test_decoding_does_not_use_encoder_tensors(weights: Weights) -> None:
    codec = Codec(weights)
    data = codec.compress(fixed_image(70, 50), 100)
    symbols, image = codec.symbols(data), codec.decompress(data)
    with torch.no_grad():
        for name, tensor in weights.model.state_dict().items():
            if name.startswith(ENCODER_PARTS):
                tensor.fill_(torch.nan)
    assert codec.symbols(data) == symbols
    assert codec.decompress(data).tobytes() == image.tobytes()


def test_names_types_shapes_tables_and_description_are_part_of_the_fingerprint(
    weights: Weights, before: dict[str, str]
) -> None:
    name, state, tables = "decoder.blocks.0.weight", weights.model.state_dict(), weights.tables
    tensor = state[name]
    first = list(tables.y[40].frequencies)
    middle = len(first) // 2 - 1
    first[middle], first[-1] = first[middle] - 1, first[-1] + 1
    moved = Table(tables.y[40].low, tuple(first))
    changes: list[dict[str, Any]] = [
        {"state": {k: v for k, v in state.items() if k != name}},
        {"state": {**state, "decoder.more": tensor}},
        {"state": {("decoder.renamed" if k == name else k): v for k, v in state.items()}},
        {"state": {**state, name: tensor.view(torch.int32)}},
        {"state": {**state, name: tensor.flatten()}},
        {"tables": Tables(tables.thresholds, (*tables.y[:40], moved, *tables.y[41:]), tables.z)},
        {"tables": Tables((*tables.thresholds[:-1], tables.thresholds[-1] + 1), tables.y, tables.z)},
        {"tables": Tables(tables.thresholds, tables.y, (moved,))},
    ]
    for part, key, value in (
        ("decoder", "window", 9),
        ("coder", "num_rates", 5),
        ("decoder", "norm", "group"),
    ):
        changed_part = {**weights.description[part], key: value}
        changes.append({"description": {**weights.description, part: changed_part}})
    for change in changes:
        after = digests_of(weights, **change)
        assert after["fingerprint"] != before["fingerprint"]
        assert after["encoder_fingerprint"] == before["encoder_fingerprint"]


def test_the_fingerprint_does_not_depend_on_order(weights: Weights, rewrite: Rewrite) -> None:
    def backwards(value: Any) -> Any:
        return {k: backwards(value[k]) for k in reversed(value)} if isinstance(value, dict) else value

    state, description = weights.model.state_dict(), dict(weights.description)
    assert list(backwards(description)) != list(description)
    found = digests_of(weights, state=backwards(dict(state)), description=backwards(description))
    assert found["fingerprint"] == weights.fingerprint

    def reverse(tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
        for values in (tensors, metadata):
            for key in [*reversed(values)]:
                values[key] = values.pop(key)

    assert read_weights(rewrite(reverse)).fingerprint == weights.fingerprint


def test_additional_metadata_are_ignored(rewrite: Rewrite, weights: Weights) -> None:
    found = read_weights(rewrite(lambda tensors, metadata: metadata.update(note="from Tuesday")))
    assert found.fingerprint == weights.fingerprint


def test_save_read_round_trip(weights: Weights, saved: Saved) -> None:
    assert [rate["lmbda"] for rate in weights.rates] == [1, 2, 4, 8]
    again = read_weights(saved())
    for name in ("tables", "rates", "description", "fingerprint"):
        assert getattr(again, name) == getattr(weights, name)
    state = again.model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in weights.model.state_dict().items())
    assert not again.model.training


def test_failed_save_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(tensors: object, path: Path, metadata: object) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    (tmp_path / "some.safetensors").write_bytes(b"old")
    monkeypatch.setattr("glc.codec.weights.file.save_file", fail)
    with pytest.raises(OSError, match="No space"):
        save(tmp_path / "some.safetensors", {}, next(iter(LABELS.values())))
    assert [path.name for path in tmp_path.iterdir()] == ["some.safetensors"]
    assert (tmp_path / "some.safetensors").read_bytes() == b"old"


@pytest.mark.parametrize("read", READERS)
def test_half_precision_is_read_exactly(
    read: Callable[[Path], Weights], file: Path, weights: Weights, saved: Saved
) -> None:
    state = {k: v.half() if v.is_floating_point() else v for k, v in weights.model.state_dict().items()}
    path = saved(state=state)
    assert path.stat().st_size < 0.6 * file.stat().st_size + 60_000  # the tables are not halved
    half = read(path)
    assert not half.files
    assert half.fingerprint != weights.fingerprint
    for name, tensor in half.model.state_dict().items():
        assert tensor.dtype in (torch.float32, torch.bool)
        assert torch.equal(tensor, state[name].to(tensor.dtype))
    codec = Codec(half)
    data = codec.compress(fixed_image(64, 64), 100)
    assert codec.from_symbols(codec.symbols(data), (64, 64), codec.rate_index(100)) == data


@pytest.mark.parametrize("stated", ["encoder_fingerprint", "fingerprint"])
def test_corruption_of_any_tensor_is_detected(rewrite: Rewrite, file: Path, stated: str) -> None:
    names = [name for name in load_file(file) if name.startswith(ENCODER_PARTS) == (stated != "fingerprint")]
    for name in names[:: len(names) // 6]:
        path = rewrite(lambda tensors, _, name=name: tensors.update({name: changed(tensors[name])}))
        with pytest.raises(WeightsError, match=rf"changed.safetensors: corrupt: .* its {stated}"):
            read_weights(path)


@pytest.mark.parametrize("read", READERS)
def test_flipped_bytes_are_detected(read: Callable[[Path], Weights], file: Path, tmp_path: Path) -> None:
    whole, path = file.read_bytes(), tmp_path / "flipped.safetensors"
    data_begins = 8 + int.from_bytes(whole[:8], "little")
    for position in (*range(data_begins, len(whole), (len(whole) - data_begins) // 8), len(whole) - 1):
        flipped = bytearray(whole)
        flipped[position] ^= 1
        path.write_bytes(flipped)
        with pytest.raises(WeightsError, match=r"flipped\.safetensors: "):
            read(path)


@pytest.mark.parametrize("read", READERS)
def test_truncated_files_are_refused(read: Callable[[Path], Weights], file: Path, tmp_path: Path) -> None:
    whole, path = file.read_bytes(), tmp_path / "cut.safetensors"
    for length in (0, 1, 7, 8, 9, 1000, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(WeightsError, match=r"cut\.safetensors: not a safetensors file"):
            read(path)


@pytest.mark.parametrize("read", [*READERS, read_label])
def test_other_files_are_refused(read: Callable[[Path], object], tmp_path: Path) -> None:
    (tmp_path / "text.safetensors").write_text("not weights\n" * 10)
    (tmp_path / "folder.safetensors").mkdir()
    save_file({"a": torch.zeros(2)}, tmp_path / "plain.safetensors")
    for name, complaint in (
        ("text", "not a safetensors file"),
        ("folder", "not a safetensors file"),
        ("plain", "is not a weights file of glc; write one with `glc export`"),
        ("missing", "no such file"),
    ):
        with pytest.raises(WeightsError, match=rf"{name}\.safetensors: {complaint}"):
            read(tmp_path / f"{name}.safetensors")


@pytest.mark.parametrize(("use", "label"), LABELS.items(), ids=[type(x).__name__ for x in LABELS.values()])
def test_label_round_trip_and_use_under_another_kind(use: str, label: Label, tmp_path: Path) -> None:
    path = tmp_path / "some.safetensors"
    save(path, {"a": torch.arange(3.0)}, label)
    found = read_label(path)
    assert type(found) is type(label)
    assert found.metadata() == label.metadata()
    for other in LABELS.values():
        if other is not label:
            with pytest.raises(
                WeightsError, match=rf"some\.safetensors: is not a thing but {re.escape(use)}$"
            ):
                open_weights(path, type(other), "a thing")


def test_files_of_a_newer_format_are_refused() -> None:
    for label in LABELS.values():
        if label.FORMAT is not None:
            newer = label.FORMAT + 1
            metadata = {**label.metadata(), "format": str(newer)}
            with pytest.raises(WeightsError, match=rf"some: format {newer} is newer"):
                kind_of(Header("some", metadata))


def change_tables(tables: Any) -> None:
    tables["thresholds"][-1] += 1


def change_window(description: Any) -> None:
    description["decoder"]["window"] = 3


@pytest.mark.parametrize(("key", "change"), [("tables", change_tables), ("model", change_window)])
def test_changed_metadata_are_detected(rewrite: Rewrite, key: str, change: Callable[[Any], None]) -> None:
    def edit(_: dict[str, Tensor], metadata: dict[str, str]) -> None:
        content = json.loads(metadata[key])
        change(content)
        metadata[key] = json.dumps(content)

    with pytest.raises(WeightsError, match=r"changed.safetensors: corrupt: .* its fingerprint"):
        read_weights(rewrite(edit))


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize(
    "text",
    [
        *(None, "", "{", "[]", "null", "NaN", "3", '"x"', "[" * 5000, "²", "-1", "\0", "[1, 2, 3]"),
        '{"_target_": "glc.models.glc.GLC"}',
        '{"_target_": "glc.models.quantizer.VectorQuantizer", "size": 4, "dim": 2}',
        '{"_target_": "glc.models.quantizer.VectorQuantizer", "size": -4, "dim": 2}',
        '{"_target_": "glc.models.glc.GLC", "encoder": 1, "decoder": 2, "coder": 3}',
        '{"_target_": ["glc.models.glc.GLC"]}',
    ],
    ids=repr,
)
def test_missing_and_invalid_metadata_are_refused(rewrite: Rewrite, key: str, text: str | None) -> None:
    def edit(_: dict[str, Tensor], metadata: dict[str, str]) -> None:
        del metadata[key]
        metadata.update({} if text is None else {key: text})

    with pytest.raises(WeightsError, match=r"changed\.safetensors: "):
        read_weights(rewrite(edit))


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
def test_malicious_metadata_raise_WeightsError(
    rewrite: Rewrite, key: str, value: str, complaint: str
) -> None:
    with pytest.raises(WeightsError, match=complaint):
        read_weights(rewrite(lambda _, metadata: metadata.update({key: value})))


def test_tensors_must_match_the_description(rewrite: Rewrite) -> None:
    with pytest.raises(WeightsError, match=r"changed\.safetensors: .*do not fit.*decoder\.blocks\.0\.weight"):
        read_weights(rewrite(lambda tensors, _: tensors.pop("decoder.blocks.0.weight")))
    with pytest.raises(WeightsError, match=r"changed\.safetensors: .*do not fit.*stranger"):
        read_weights(rewrite(lambda tensors, _: tensors.update(stranger=torch.zeros(1))))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e9])
@pytest.mark.parametrize(
    "layer", ["context.reduction", "hyper.synthesis.0.conv", "context.adaptors.2.1.project"]
)
def test_weights_of_integer_networks_must_be_in_range(
    weights: Weights, saved: Saved, layer: str, value: float
) -> None:
    weights.model.state_dict()[f"coder.{layer}.weight"].view(-1)[3] = value
    with pytest.raises(WeightsError, match=rf"saved\.safetensors: cannot encode files: coder\.{layer}"):
        glc.load(saved(), "cpu")


def test_encoder_and_decoder_downsampling_must_agree(saved: Saved) -> None:
    description = fixed_description()
    description["encoder"]["stem"] = 2
    with pytest.raises(WeightsError, match="downsampling"):
        glc.load(saved(state=build_model("odd", description).state_dict(), description=description), "cpu")


@pytest.mark.parametrize("weights", ["categorical", "factorized"], indirect=True)
def test_tables_of_z_must_fit_the_hyperprior(weights: Weights, saved: Saved) -> None:
    some, shifted = weights.tables.y[0], Table(1, index_table(torch.ones(CODES)).frequencies)
    for z in ([some], [some] * 15, [some] * 17, [shifted]):
        path = saved(tables=Tables(weights.tables.thresholds, weights.tables.y, tuple(z)))
        with pytest.raises(WeightsError, match=r"cannot encode files: .*(indices 0 to 31|of 16 channels)"):
            glc.load(path, "cpu")
