"""Warm start of a stage from the weights of another."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from safetensors import safe_open
from safetensors.torch import save_file

from glc.codec.convert.convert import convert
from glc.codec.convert.read import open_source
from glc.codec.weights.export import export, export_training_weights
from glc.codec.weights.file import read_weights
from glc.errors import WeightsError
from glc.training.init_from import TransferError, warm_start
from glc.training.stages.base import Stage
from tests.codec.convert.stand_ins import SMALL, layouts, stand_in, stand_ins
from tests.short_runs import checkpoint, compose, settings
from tests.training.own import Plain

Make = Callable[..., Stage]


@pytest.fixture
def make(images: Path, tmp_path: Path) -> Make:
    def make(stage: str, **changes: Any) -> Stage:
        names = {"variants": "model/variants"}
        named = {names.get(key, key.replace("__", ".")): value for key, value in changes.items()}
        return instantiate(compose({**settings(images, tmp_path, "transfer", stage), **named}).stage.module)

    return make


def start(stage: Any, *paths: Path, discriminator: Path | None = None) -> list[str]:
    sources = [open_source(path) for path in paths]
    return warm_start(stage, *sources, discriminator=discriminator and open_source(discriminator))


def last(folder: Path) -> Path:
    return folder / "checkpoints" / "last.ckpt"


def same(stage: Stage, name: str, state: dict[str, torch.Tensor], source: str) -> bool:
    weights = stage.get_submodule(name).state_dict()
    assert weights
    return all(torch.equal(value, state[f"{source}.{key}"]) for key, value in weights.items())


def test_each_stage_loads_the_networks_that_it_shares(make: Make, stages: dict[str, Path]) -> None:
    first, second, third = (checkpoint(stages[s])["state_dict"] for s in ("vqvae", "transform", "joint"))

    transform = make("transform")
    assert start(transform, last(stages["vqvae"])) == ["model.encoder", "model.decoder", "quantizer"]
    assert same(transform, "model.encoder", first, "autoencoder.encoder")  # the EMA weights
    assert same(transform, "model.decoder", first, "autoencoder.decoder")
    assert same(transform, "quantizer", first, "autoencoder.quantizer")

    joint = make("joint")
    loaded = start(joint, last(stages["transform"]))
    assert set(loaded) == {
        "model.encoder",
        "model.decoder",
        "quantizer",
        "model.coder",
        "code_loss.predictor",
    }
    assert same(joint, "model.coder", second, "model.coder")
    assert same(joint, "vq_encoder", first, "autoencoder.encoder")

    again = make("joint")
    assert {"vq_encoder", "adversarial.discriminator"} < set(start(again, last(stages["joint"])))
    assert same(again, "vq_encoder", first, "autoencoder.encoder")
    assert same(again, "model.encoder", third, "model.encoder")

    vqvae = make("vqvae")
    loaded = start(vqvae, last(stages["vqvae"]))
    assert "adversarial.discriminator" in loaded
    assert same(vqvae, "autoencoder.quantizer", first, "autoencoder.quantizer")


def test_stage_three_loads_the_discriminator_of_stage_one(make: Make, stages: dict[str, Path]) -> None:
    joint = make("joint")
    first = checkpoint(stages["vqvae"])["state_dict"]
    name = "adversarial.discriminator"
    assert not start(joint, discriminator=last(stages["transform"]))
    assert not same(joint, name, first, name)
    assert start(joint, discriminator=last(stages["vqvae"]))
    assert same(joint, name, first, name)
    other = make("joint", model__discriminator__channels=24)
    with pytest.raises(
        TransferError, match=r"adversarial\.discriminator does not fit.*discriminator_from=none"
    ):
        start(other, discriminator=last(stages["vqvae"]))
    sources = [open_source(last(stages["joint"]))]
    loaded = warm_start(other, *sources, new_discriminator=True)
    assert "model.decoder" in loaded
    assert name not in loaded


def test_stage_one_can_start_from_a_codec(make: Make, stages: dict[str, Path]) -> None:
    vqvae = make("vqvae")
    third = checkpoint(stages["joint"])["state_dict"]
    assert "autoencoder.encoder" in start(vqvae, last(stages["joint"]))
    assert same(vqvae, "autoencoder.encoder", third, "model.encoder")


def test_a_network_is_loaded_from_the_first_file_that_has_it(make: Make, stages: dict[str, Path]) -> None:
    first, third = (checkpoint(stages[s])["state_dict"] for s in ("vqvae", "joint"))
    transform = make("transform")
    loaded = start(transform, last(stages["vqvae"]), last(stages["joint"]))
    assert {"model.encoder", "quantizer", "model.coder", "code_loss.predictor"} <= set(loaded)
    assert same(transform, "model.encoder", first, "autoencoder.encoder")
    assert not same(transform, "model.encoder", third, "model.encoder")
    assert same(transform, "model.coder", third, "model.coder")


def test_a_codec_can_be_trained_further_without_code_prediction(
    make: Make, stages: dict[str, Path], tmp_path: Path
) -> None:
    codec = tmp_path / "codec.safetensors"
    export(last(stages["joint"]), codec)
    weights = checkpoint(stages["joint"])["state_dict"]
    with pytest.raises(TransferError, match=r"has no quantizer, .*model/variants=no_code_prediction"):
        start(make("joint", model__projected_codebooks=False), codec)
    for name in ("joint", "transform"):
        stage = make(name, variants="no_code_prediction", model__projected_codebooks=False)  # as in a codec
        assert set(start(stage, codec)) == {"model.encoder", "model.decoder", "model.coder"}
        assert same(stage, "model.decoder", weights, "model.decoder")
    joint = make("joint", variants="no_code_prediction", model__projected_codebooks=False)
    start(joint, codec)
    # E_VQ is the loaded encoder.
    assert same(joint, "vq_encoder", weights, "model.encoder")


def test_codec_and_training_weights_provide_all_networks(
    make: Make, stages: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    codec, training = tmp_path / "codec.safetensors", tmp_path / "codec.training.safetensors"
    export(last(stages["joint"]), codec)
    words = export_training_weights(last(stages["joint"]), training)
    assert words == ["C", "the code predictor", "E_VQ", "the discriminator"]
    weights = checkpoint(stages["joint"])["state_dict"]
    with safe_open(training, "pt") as file:
        kept = {key for key in weights if not key.startswith(("model.", "quantizer.projection."))}
        assert set(file.keys()) == kept
    joint = make("joint", model__projected_codebooks=False)
    assert set(start(joint, codec, training)) == {
        "model.encoder",
        "model.decoder",
        "model.coder",
        "quantizer",
        "code_loss.predictor",
        "vq_encoder",
        "adversarial.discriminator",
    }
    for name in ("model.encoder", "vq_encoder", "adversarial.discriminator"):
        assert same(joint, name, weights, name)
    assert not same(joint, "vq_encoder", weights, "model.encoder")
    whole = make("joint")
    start(whole, last(stages["joint"]))
    torch.testing.assert_close(joint.quantizer.codebook(), whole.quantizer.codebook())
    with pytest.raises(TransferError, match=r"has no model\.encoder, .*The file holds training weights"):
        start(make("transform", model__projected_codebooks=False), training)
    with pytest.raises(WeightsError, match=r"training weights for a codec: use it with init_from=\[CODEC,"):
        read_weights(training)
    assert "was exported beside another" not in caplog.text
    export(last(stages["transform"]), codec, half=True)  # D is stage I's
    start(make("joint", model__projected_codebooks=False), codec, training)
    assert "was exported beside another" in caplog.text
    with pytest.raises(WeightsError, match="holds no codec with training weights"):
        export_training_weights(last(stages["vqvae"]), tmp_path / "no.safetensors")
    assert not (tmp_path / "no.safetensors").exists()


def test_training_weights_in_half_precision_and_corrupt_ones(
    make: Make, stages: dict[str, Path], tmp_path: Path
) -> None:
    codec, training = tmp_path / "codec.safetensors", tmp_path / "codec.training.safetensors"
    export(last(stages["joint"]), codec, half=True)
    export_training_weights(last(stages["joint"]), training, half=True)
    joint = make("joint", model__projected_codebooks=False)
    start(joint, codec, training)
    weights = checkpoint(stages["joint"])["state_dict"]
    name = "adversarial.discriminator"
    assert same(joint, name, {key: t.half().float() for key, t in weights.items()}, name)
    assert start(make("joint"), discriminator=training)
    with safe_open(training, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    tensors[f"{name}.layers.0.weight" if f"{name}.layers.0.weight" in tensors else max(tensors)].fill_(
        torch.nan
    )
    save_file(tensors, training, metadata)
    with pytest.raises(WeightsError, match="corrupt training weights"):
        start(joint, codec, training)


def test_an_untrained_codebook_counts_as_missing(make: Make, stages: dict[str, Path], tmp_path: Path) -> None:
    untrained = tmp_path / "none.ckpt"
    content = torch.load(last(stages["transform"]), weights_only=True)
    # As after stage II with model/variants=no_code_prediction; the coder is not needed here.
    content["state_dict"]["quantizer.initialized"].fill_(False)
    for key in [key for key in content["state_dict"] if key.startswith("model.coder.")]:
        del content["state_dict"][key]
    torch.save(content, untrained)
    for options in ({}, {"variants": "indices_map"}):
        stage = make("transform", **options)
        with pytest.raises(TransferError, match="has no quantizer"):
            start(stage, untrained)
    with pytest.raises(TransferError, match="has no quantizer") as caught:
        start(make("transform", variants="[indices_map,no_code_prediction]"), untrained)
    assert "model/variants=no_code_prediction" not in str(caught.value)  # already set
    # C of stage I is always trained.
    stage = make("transform")
    start(stage, last(stages["vqvae"]))
    assert stage.quantizer.initialized


def test_the_refiner_provides_its_codebook_unless_an_earlier_file_has_one(
    make: Make, stages: dict[str, Path], tmp_path: Path
) -> None:
    network = make("transform", variants="refiner")
    start(network, last(stages["vqvae"]))
    with torch.no_grad():
        network.quantizer.embedding.add_(1.0)
    other = tmp_path / "network.ckpt"
    content = torch.load(last(stages["transform"]), weights_only=True)
    content["state_dict"] = network.state_dict()
    torch.save(content, other)
    first = checkpoint(stages["vqvae"])["state_dict"]
    again = make("transform", variants="refiner")
    assert "model.refiner" in start(again, last(stages["vqvae"]), other)
    assert same(again, "quantizer", {**first, "autoencoder.quantizer.initialized": torch.tensor(True)},
                "autoencoder.quantizer")  # fmt: skip
    for key in [key for key in content["state_dict"] if key.startswith(("quantizer.", "code_loss."))]:
        del content["state_dict"][key]  # as in a codec's weights file
    torch.save(content, other)
    assert "quantizer" in start(make("transform", variants="refiner"), other)


def test_error_names_the_network_that_does_not_fit(make: Make, stages: dict[str, Path]) -> None:
    stage = make("transform", model__decoder__channels=24)
    before = {key: value.clone() for key, value in stage.model.decoder.state_dict().items()}
    with pytest.raises(TransferError) as caught:
        start(stage, last(stages["vqvae"]))
    message = str(caught.value)
    assert str(last(stages["vqvae"])) in message
    assert "model.decoder does not fit: of another shape: blocks." in message
    assert "and" in message
    assert "more" in message
    assert message.endswith("The checkpoint has model=tiny")
    # Shapes are given as the checkpoint's and the model's.
    shapes = checkpoint(stages["vqvae"])["state_dict"]
    key = message.split("of another shape: ")[1].split(" is ")[0]
    theirs, ours = list(shapes[f"autoencoder.decoder.{key}"].shape), list(before[key].shape)
    assert f"{key} is {theirs}, not {ours}" in message
    assert all(torch.equal(value, before[k]) for k, value in stage.model.decoder.state_dict().items())


def test_refinement_blocks_are_added_to_a_decoder_without_them(make: Make, stages: dict[str, Path]) -> None:
    plain, fine = make("joint"), make("joint", **{"+model__decoder__fine_blocks": 1})
    start(plain, last(stages["joint"]))
    assert "model.decoder" in start(fine, last(stages["joint"]))
    latent = torch.randn(1, plain.model.decoder.latent_channels, 4, 3)
    decoders = [stage.model.decoder.eval() for stage in (plain, fine)]
    torch.testing.assert_close(decoders[1](latent), decoders[0](latent))
    assert len(decoders[1].state_dict()) > len(decoders[0].state_dict())

    deep = make("joint", **{"+model__decoder__fine_blocks": 1, "model__decoder__num_blocks": 2})
    with pytest.raises(TransferError, match=r"model\.decoder does not fit: missing: blocks\."):
        start(deep, last(stages["joint"]))


def test_error_names_missing_keys_of_another_depth(make: Make, stages: dict[str, Path]) -> None:
    with pytest.raises(TransferError, match=r"model\.encoder does not fit: missing: blocks\."):
        start(make("transform", model__encoder__num_blocks=2), last(stages["vqvae"]))


def test_custom_networks_are_matched_by_name(make: Make, tmp_path: Path) -> None:
    own = {"stage__module___target_": "tests.training.own.FilteredStage", "variants": "no_code_prediction"}
    first, second = make("transform", **own), make("transform", **own)
    path = tmp_path / "own.ckpt"
    first.quantizer.initialized.fill_(True)
    torch.save({"state_dict": first.state_dict(), "glc": {"format": 1, "recipe": {}}}, path)
    assert {"model.encoder", "quantizer", "model.gate", "prefilter"} <= set(start(second, path))
    for name in ("prefilter", "model.gate", "model.encoder"):
        assert same(second, name, first.state_dict(), name)
    other = make("transform", **own)
    other.prefilter = torch.nn.Conv2d(3, 5, 1)
    with pytest.raises(TransferError, match=r"prefilter does not fit: of another shape: weight is \[3, 3"):
        start(other, path)


def test_file_without_any_network_of_the_stage_is_refused(stages: dict[str, Path]) -> None:
    plain = Plain()
    with pytest.raises(TransferError, match=r"has none of this stage's networks\. .* init_from=none"):
        start(plain, last(stages["vqvae"]))


def test_checkpoint_without_a_required_network_is_refused(make: Make, stages: dict[str, Path]) -> None:
    with pytest.raises(TransferError, match=r"has no model\.coder, which this stage needs"):
        start(make("joint"), last(stages["vqvae"]))


def test_missing_or_invalid_checkpoint_is_refused(make: Make, tmp_path: Path) -> None:
    (tmp_path / "text.ckpt").write_text("hello")
    for name in ("text", "missing"):
        with pytest.raises(WeightsError, match=rf"{name}\.ckpt: "):
            start(make("transform"), tmp_path / f"{name}.ckpt")


def test_indices_map_codebooks_are_derived_from_stage_one(make: Make, stages: dict[str, Path]) -> None:
    stage = make("transform", variants="indices_map")
    assert start(stage, last(stages["vqvae"])) == ["model.encoder", "model.decoder", "quantizer"]
    codes = stage.quantizer.codebook()
    smallest, *_, largest = [book for book in stage.model.coder.parameters() if book.ndim == 2]
    assert len(smallest) < len(largest) == len(codes)
    spread = codes.std(0).mean()
    assert torch.cdist(largest, codes).min(1).values.max() < spread


@pytest.mark.parametrize(("variants", "factor"), [("[]", 1), ("indices_map", 250)])
def test_latent_codebook_loss_is_weighted_by_lambda(make: Make, variants: str, factor: float) -> None:
    """In indices-map coding the codebook term is multiplied by lambda; that of C_h is not."""
    stage = make("joint", variants=variants)
    coding = {name: torch.full((1,), 2.0, requires_grad=True) for name in ("rate_y", "rate_z", "codebook")}
    distortion = {name: torch.full((1,), 3.0, requires_grad=True) for name in stage.distortion_weights}
    stage.total(coding, distortion, torch.tensor([250.0])).sum().backward()
    assert coding["codebook"].grad == factor * stage.weights["codebook"]
    assert coding["rate_y"].grad == stage.weights["rate_y"]
    assert distortion["l1"].grad == 250 * stage.distortion_weights["l1"]


# Third-party weights: model=natural and model=facial at the sizes of the stand-ins.
SIZES = {
    "model__latent_channels": SMALL.latent_channels,
    "model__channels": SMALL.width,
    "model__codebook_size": SMALL.codes,
    "model__hyper_codebook_size": SMALL.hyper_codes,
    "model__encoder__channels": SMALL.channels,
    "model__decoder__channels": SMALL.channels,
    "model__predictor_width": SMALL.predictor_width,
    "model__predictor_grid": SMALL.predictor_grid,
}


def published(kind: str, folder: Path) -> Path:
    path = folder / f"{kind}.pth"
    torch.save({"state_dict": stand_ins(layouts()[kind])}, path)
    return path


def theirs(parameter: torch.Tensor, name: str) -> bool:
    return torch.equal(parameter, stand_in(name, tuple(parameter.shape)))


@pytest.mark.parametrize("stage", ["vqvae", "transform"])
@pytest.mark.parametrize("converted", [False, True])
@pytest.mark.parametrize(("kind", "model"), [("taming", "natural"), ("codeformer", "facial")])
def test_third_party_vqgan_starts_stages_one_and_two(
    make: Make, tmp_path: Path, kind: str, model: str, converted: bool, stage: str
) -> None:
    source = published(kind, tmp_path)
    if converted:
        convert(source, tmp_path / "vqgan.safetensors")
        source = tmp_path / "vqgan.safetensors"
    made = make(stage, model=model, **SIZES)
    loaded = start(made, source)
    assert [name.rpartition(".")[2] for name in loaded] == ["encoder", "decoder", "quantizer"]
    encoder, decoder, quantizer = (made.get_submodule(name) for name in loaded)
    first, last = ("conv_in", "conv_out") if kind == "taming" else ("blocks.0", "blocks.24")
    network = "decoder" if kind == "taming" else "generator"
    assert theirs(encoder.blocks[0].weight, f"encoder.{first}.weight")
    assert theirs(decoder.last_layer, f"{network}.{last}.weight")
    assert theirs(quantizer.codebook(), "quantize.embedding.weight")
    assert quantizer.initialized  # so k-means does not run again


def test_published_codec_starts_stages_two_and_three(make: Make, tmp_path: Path) -> None:
    source = published("glc", tmp_path)
    shared = {"model.encoder", "model.decoder", "quantizer", "model.coder", "code_loss.predictor"}
    joint = make("joint", model="natural", **SIZES)
    assert set(start(joint, source)) == shared
    assert theirs(joint.quantizer.codebook(), "vqgan.quantize.embedding.weight")
    assert theirs(joint.vq_encoder.blocks[0].weight, "vqgan.encoder.blocks.0.weight")
    # The predictor for latents of coded images.
    assert theirs(joint.code_loss.predictor.position, "code_pred_pix_loss.position_emb")
    assert joint.model.coder.hyper.quantizer.initialized

    transform = make("transform", model="natural", **SIZES)
    assert set(start(transform, source)) == shared
    assert theirs(transform.code_loss.predictor.position, "code_pred_loss.position_emb")

    without = make("joint", model="natural", variants="no_code_prediction", **SIZES)
    assert set(start(without, source)) == shared - {"code_loss.predictor"}


def test_weights_file_without_codebook_is_refused(make: Make, tmp_path: Path) -> None:
    convert(published("glc", tmp_path), tmp_path / "glc.safetensors")
    with pytest.raises(TransferError, match=r"has no quantizer, .* The file is a codec's weights file"):
        start(make("joint", model="natural", **SIZES), tmp_path / "glc.safetensors")


def test_third_party_file_for_another_model_is_refused(make: Make, tmp_path: Path) -> None:
    source = published("taming", tmp_path)
    with pytest.raises(TransferError, match=r"model\.encoder does not fit: .*The file is a VQGAN of taming"):
        start(make("transform"), source)
    with pytest.raises(TransferError, match=r"has no model\.coder, .* The file is a VQGAN of taming"):
        start(make("joint", model="natural", **SIZES), source)
