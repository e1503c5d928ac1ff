"""The three stages in sequence: trained weights, logged metrics, checkpoint contents."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image
from torch import Tensor

from glc.evaluation.training_runs import read_training_runs
from glc.models.autoencoder import VQAutoencoder
from glc.training.stages.base import Stage
from tests.short_runs import STAGES, checkpoint, compose, figures, finite, live_weights, run, settings
from tests.training import one_step

STEPS = 4
PLAIN = (dict, list, tuple, str, int, float, bool, type(None))


def below(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    found = {key[len(prefix) + 1 :]: value for key, value in state.items() if key.startswith(f"{prefix}.")}
    assert found, f"nothing below {prefix}"
    return found


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    assert a.keys() == b.keys()
    return all(torch.equal(value, b[key]) for key, value in a.items())


def all_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(type(key) is str and all_plain(item) for key, item in value.items())
    if isinstance(value, list):
        return all(all_plain(item) for item in value)
    return type(value) in PLAIN


@pytest.mark.parametrize(("stage", "optimizers"), [("vqvae", 2), ("transform", 1), ("joint", 2)])
def test_checkpoints_hold_tensors_and_plain_values(
    stages: dict[str, Path], stage: str, optimizers: int
) -> None:
    saved = checkpoint(stages[stage])  # weights_only=True
    assert saved["glc"].keys() - {"commit"} == {"format", "recipe", "version"}
    assert saved["glc"]["recipe"]["stage"]["name"] == stage
    assert all_plain(saved["glc"])
    assert len(saved["optimizer_states"]) == optimizers
    assert saved["global_step"] == STEPS  # one batch is one step with two optimizers too
    outside = ("perceptual", "quality", "usage", "tallies", "metric", "lpips")
    assert not [key for key in saved["state_dict"] if any(word in key for word in outside)]


@pytest.mark.parametrize("stage", STAGES)
def test_checkpoints_hold_ema_and_live_weights(stages: dict[str, Path], stage: str) -> None:
    saved = checkpoint(stages[stage])
    average, live = saved["state_dict"], live_weights(saved)
    network = "autoencoder.encoder" if stage == "vqvae" else "model.coder"
    assert not equal(below(average, network), below(live, network))
    # Unchanged weights are equal in both: averaging must not round them.
    shared = "autoencoder.quantizer.embedding" if stage == "vqvae" else "quantizer.embedding"
    assert torch.equal(average[shared], live[shared])


COMMON = {"train/loss", "train/codebook", "train/grad_norm", "train/images_per_second"}
USAGE = {"usage", "perplexity", "count"}
PIXELS = {"train/l1", "train/lpips"}
LATENT = {"train/rate_y", "train/rate_z", "train/code_ce", "train/latent_mse"}
ADVERSARIAL = {
    "train/logits_real",
    "train/logits_fake",
    "train/discriminator",
    "train/grad_norm_discriminator",
}
LOGGED = {
    "vqvae": COMMON | PIXELS | ADVERSARIAL | {f"train/codebook_{figure}" for figure in USAGE},
    "transform": COMMON | LATENT | {f"train/hyper_codebook_{figure}" for figure in USAGE},
    "joint": COMMON
    | PIXELS
    | LATENT
    | ADVERSARIAL
    | {"train/adversarial", "train/adversarial_weight"}
    | {f"train/hyper_codebook_{figure}" for figure in USAGE},
}


@pytest.mark.parametrize("stage", STAGES)
def test_every_term_is_logged_from_the_first_step(stages: dict[str, Path], stage: str) -> None:
    rows = figures(stages[stage])
    assert all(finite(row) for row in rows)
    training = [row for row in rows if "train/loss" in row]
    assert [row["step"] for row in training] == list(range(STEPS))
    for row in training:
        norms = {name for name in row if "_norm/" in name}  # per network: test_networks.py
        assert row.keys() - {"epoch", "step"} - norms == LOGGED[stage]
    rates = [row for row in rows if "lr-AdamW" in row]
    assert len(rates) == STEPS
    assert all(("lr-AdamW-1" in row) == (stage != "transform") for row in rates)


@pytest.mark.parametrize("stage", STAGES)
def test_validation_is_logged_before_and_after_training(stages: dict[str, Path], stage: str) -> None:
    rows = [row for row in figures(stages[stage]) if "val/loss" in row]
    assert [row["step"] for row in rows] == [0, STEPS - 1]  # the number of the previous step
    suffixes = [""] if stage == "vqvae" else [f"/{k}" for k in range(4)]
    for row in rows:
        for suffix in suffixes:
            # `lpips` is the loss term, `lpips_alex` the metric.
            wanted = {f"val/{name}{suffix}" for name in ("psnr", "ms_ssim", "lpips_alex", "loss")}
            assert wanted <= row.keys()
    if stage != "vqvae":
        mean = sum(rows[-1][f"val/loss/{k}"] for k in range(4)) / 4
        assert rows[-1]["val/loss"] == pytest.approx(mean, rel=1e-5)


@pytest.mark.parametrize(("stage", "images"), [("vqvae", 2), ("transform", 5), ("joint", 5)])
def test_panels_show_the_image_and_each_rate_point(stages: dict[str, Path], stage: str, images: int) -> None:
    files = sorted(path.name for path in (stages[stage] / "panels").iterdir())
    assert files == [f"{i:02d}-step-{step:06d}.png" for i in range(2) for step in (0, STEPS)]
    with Image.open(stages[stage] / "panels" / files[0]) as strip:
        assert strip.size == (images * 192, 192)
        names = ["x", "x_hat"] if stage == "vqvae" else ["x", *(f"rate_{k}" for k in range(4))]
        assert json.loads(strip.info["columns"]) == names


def test_the_report_reads_what_the_stages_write(stages: dict[str, Path]) -> None:
    runs = read_training_runs([stages["vqvae"].parent])
    assert [run.name for run in runs] == list(STAGES)
    for read in runs:
        assert read.settings["stage"]["name"] == read.name
        assert read.series.keys() >= figures(read.folder)[-1].keys() - {"step"}
        assert [(panel.image, panel.step) for panel in read.panels] == [
            (i, step) for i in (0, 1) for step in (0, STEPS)
        ]
        # Both images of the last validation, at each rate point: f = 16, and z at a quarter of that.
        codebooks = {"vqvae": {"codebook": 2 * 12 * 12}}.get(read.stage, {"hyper_codebook": 2 * 4 * 3 * 3})
        assert {name: sum(found.counts) for name, found in read.histograms.items()} == codebooks
        assert {found.step for found in read.histograms.values()} == {STEPS}
    assert runs[1].rate_points("psnr") == [0, 1, 2, 3]


def test_stage_two_trains_only_the_coder(stages: dict[str, Path]) -> None:
    first = checkpoint(stages["vqvae"])["state_dict"]  # the next stage loads the EMA
    saved = checkpoint(stages["transform"])
    for state in (saved["state_dict"], live_weights(saved)):
        assert equal(below(state, "model.encoder"), below(first, "autoencoder.encoder"))
        assert equal(below(state, "model.decoder"), below(first, "autoencoder.decoder"))
        assert equal(below(state, "quantizer"), below(first, "autoencoder.quantizer"))
    # Another test shows that EMA and live weights differ, so the coder is trained.
    trained = sum(len(group["params"]) for group in saved["optimizer_states"][0]["param_groups"])
    module = instantiate(OmegaConf.create(saved["glc"]["recipe"]["stage"]["module"]))
    ours = [*module.model.coder.parameters(), *module.code_loss.parameters()]
    assert trained == len(ours)


def test_stage_three_trains_all_but_the_reference_encoder(stages: dict[str, Path]) -> None:
    first = checkpoint(stages["vqvae"])["state_dict"]
    second = checkpoint(stages["transform"])["state_dict"]
    live = live_weights(checkpoint(stages["joint"]))
    assert equal(below(live, "vq_encoder"), below(first, "autoencoder.encoder"))
    assert equal(below(live, "quantizer"), below(first, "autoencoder.quantizer"))
    for network in ("model.encoder", "model.decoder", "model.coder", "code_loss.predictor"):
        assert not equal(below(live, network), below(second, network)), network
    assert not equal(below(live, "adversarial.discriminator"), below(first, "adversarial.discriminator"))


@pytest.mark.parametrize("stage", ["transform", "joint"])
def test_frozen_networks_stay_in_evaluation_mode(images: Path, tmp_path: Path, stage: str) -> None:
    module = instantiate(compose(settings(images, tmp_path, "frozen", stage)).stage.module)
    module.setup("fit")
    module.eval().train()
    assert module.model.coder.training
    frozen = [module.get_submodule(name) for name in module.frozen]
    assert not any(part.training for network in frozen for part in network.modules())
    assert not any(p.requires_grad for network in frozen for p in network.parameters())
    assert module.model.encoder.training == (stage == "joint")


def test_randomness_is_a_function_of_seed_step_and_rank(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = instantiate(compose(settings(images, tmp_path, "seed", "transform")).stage.module)

    class Place:
        def __init__(self, rank: int, step: int) -> None:
            self.global_rank = rank
            self.fit_loop = self.epoch_loop = self
            self.total_batch_idx = step
            self.num_training_batches = 1

    def sample(seed: int, rank: int, step: int) -> Tensor:
        module.seed = seed
        monkeypatch.setattr(type(module), "trainer", Place(rank, step))
        monkeypatch.setattr(type(module), "global_rank", rank)
        module.on_train_batch_start(None, 0)
        return torch.rand(4)

    places = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 1, 1)]
    sampled = [sample(*place) for place in places]
    torch.rand(100)
    assert all(torch.equal(sample(*place), value) for place, value in zip(places, sampled, strict=True))
    assert len({tuple(value.tolist()) for value in sampled}) == len(places)


def test_balance_scales_by_mean_lambda_over_lambda(tmp_path: Path) -> None:
    """One image, at the third rate point: its update is mean(lambda) / lambda times the plain one."""
    plain = one_step.update(tmp_path, "transform", batch=1, first=1)
    balanced = one_step.update(tmp_path, "transform", batch=1, first=1, balance=True)
    lmbda = list(compose(settings(tmp_path, tmp_path, "one-step", "transform")).stage.lmbda)
    share = sum(lmbda) / len(lmbda) / lmbda[2]
    assert share != 1
    # Buffers (code usage counts) change without a gradient.
    moved = {key for key, value in plain.items() if value.abs().max() > 0 and "analysis" in key}
    assert moved
    scaled = {key: share * plain[key] for key in moved}
    assert one_step.difference(scaled, {key: balanced[key] for key in moved}) < 1e-3


def test_different_seeds_give_different_random_numbers() -> None:
    """32-bit seeds, as `seed_everything` accepts; times the step they exceed 64 bits."""

    def state(seed: int, batch: int) -> int:
        loop = SimpleNamespace(epoch_loop=SimpleNamespace(total_batch_idx=batch))
        stage = SimpleNamespace(
            seed=seed,
            global_rank=0,
            optimization=SimpleNamespace(accumulate=1),
            trainer=SimpleNamespace(fit_loop=loop, num_training_batches=1),
        )
        Stage.on_train_batch_start(stage, None, batch)  # type: ignore[arg-type]
        return torch.initial_seed()

    seeds = (0, 1, 281_500_000, 2**32 - 2, 2**32 - 1)
    assert len({state(seed, batch) for seed in seeds for batch in (0, 1, 2)}) == 3 * len(seeds)
    assert state(1, 4) == (1_000_003 + 5) * 65_537


def test_quantizer_bypass_is_sampled_with_its_probability(images: Path, tmp_path: Path) -> None:
    def make(probability: float) -> Any:
        options = settings(images, tmp_path, "share", "vqvae")
        return instantiate(compose({**options, "stage.quantizer_bypass": probability}).stage.module)

    x = torch.zeros(4000, 1)
    assert make(0.0).sample_bypass(x) is None
    torch.manual_seed(0)
    assert make(0.25).sample_bypass(x).float().mean().item() == pytest.approx(0.25, abs=0.03)
    assert make(1.0).sample_bypass(x).all()
    with pytest.raises(Exception, match=r"stage\.quantizer_bypass: must lie in \[0, 1\], got 1\.5"):
        make(1.5)


def test_quantizer_bypass_is_used_in_training_only(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[bool, list[bool]] = {True: [], False: []}
    forward = VQAutoencoder.forward

    def spy(self: VQAutoencoder, x: Tensor, unquantized: Tensor | None = None) -> Any:
        seen[self.training].append(unquantized is not None and bool(unquantized.all()))
        return forward(self, x, unquantized)

    monkeypatch.setattr(VQAutoencoder, "forward", spy)
    folder = run({**settings(images, tmp_path, "share", "vqvae", 2), "stage.quantizer_bypass": 1.0})
    assert seen[True] == [True, True]
    assert seen[False]
    assert not any(seen[False])  # validation always uses codewords
    assert all(finite(row) for row in figures(folder))
