"""Every choice of the configuration composes, makes what it says, and holds the paper's settings."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from glc.losses.adversarial import AdversarialLoss
from glc.losses.reconstruction import ReconstructionLoss
from glc.training.callbacks.ema import MovingAverage
from glc.training.stages.joint import JointStage
from glc.training.stages.transform import TransformStage
from glc.training.stages.vqvae import VQVAEStage
from tests.short_runs import (
    QUIET,
    ROOT,
    STAGES,
    checkpoint,
    compose,
    figures,
    finite,
    run,
    settings,
    write_pictures,
)

CONF = ROOT / "conf"
PAPER = ("paper_natural", "paper_facial", "paper_f8")
MODULES = {"vqvae": VQVAEStage, "transform": TransformStage, "joint": JointStage}


def choices(group: str) -> list[str]:
    found = sorted(path.stem for path in (CONF / group).glob("*.yaml"))
    assert found
    return found


def chosen(stage: str = "vqvae", **groups: str) -> DictConfig:
    """Compose with the choices alone, all else as it is; what a user must give is given."""
    values: dict[str, Any] = {"stage": stage, **groups, "runs_dir": "runs", "name": "test"}
    if groups.get("data") in ("shards", "folder") or not {"data", "experiment"} & groups.keys():
        values |= {"data.train": "here", "data.val": "there"}
    cfg = compose(values)
    OmegaConf.resolve(cfg)
    assert not OmegaConf.missing_keys(cfg)
    return cfg


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test here reaches for the network."""
    for key, value in QUIET.items():
        monkeypatch.setenv(key, value)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("config")


@pytest.fixture(scope="module")
def pictures(folder: Path) -> Path:
    return write_pictures(folder / "pictures")


@pytest.mark.parametrize(
    ("group", "choice"),
    [
        (group, choice)
        for group in (
            "model",
            "coder",
            "code_prediction",
            "data",
            "trainer",
            "callbacks",
            "logger",
            "metrics",
        )
        for choice in choices(group)
    ],
)
def test_every_choice_composes_with_every_stage(group: str, choice: str) -> None:
    for stage in STAGES:
        cfg = chosen(stage, **{group: choice})
        assert cfg.stage.name == stage
        if group == "model":
            assert cfg.model.name == choice


@pytest.mark.parametrize("choice", choices("degradation"))
def test_every_degradation_can_be_made(choice: str) -> None:
    cfg = chosen("restoration", degradation=choice)
    assert type(instantiate(cfg.degradation)).__name__.lower() == choice.replace("_", "")


def test_a_mixtures_parts_are_left_out_and_weighed() -> None:
    more = {"degradation.parts.mask": "null", "degradation.weights.blur": "2"}
    mixture = instantiate(chosen("restoration", degradation="mixture", **more).degradation)
    assert list(mixture.parts) == ["gaussian_noise", "blur", "jpeg", "downsample"]
    assert mixture.shares.tolist() == [1, 2, 1, 1]
    assert chosen("restoration", degradation="mixture").degradation.weights.keys() == {*mixture.parts, "mask"}


@pytest.mark.parametrize(("experiment", "stage"), list(itertools.product(choices("experiment"), STAGES)))
def test_every_experiment_composes_with_every_stage(experiment: str, stage: str) -> None:
    cfg = chosen(stage, experiment=experiment)
    assert cfg.stage.module._target_ == f"{MODULES[stage].__module__}.{MODULES[stage].__name__}"
    assert cfg.stage.schedule.total == cfg.trainer.max_steps
    assert cfg.stage.schedule.warmup < cfg.trainer.max_steps


def test_every_recipe_belongs_to_an_experiment_and_a_stage() -> None:
    for path in (CONF / "recipe").rglob("*.yaml"):
        assert path.parent.name in choices("experiment")
        assert path.stem in STAGES


def test_a_recipe_changes_its_stage_only() -> None:
    first, second = (chosen(stage, experiment="paper_natural") for stage in ("vqvae", "transform"))
    assert "imagenet" in first.data.train
    assert "openimages" in second.data.train


COMBINATIONS = list(itertools.product(choices("coder"), choices("code_prediction"), STAGES[1:]))


@pytest.mark.parametrize(("coder", "code_prediction", "stage"), COMBINATIONS)
def test_every_combination_trains(
    folder: Path, pictures: Path, coder: str, code_prediction: str, stage: str
) -> None:
    name = f"{coder}-{code_prediction}"
    values = {
        **settings(pictures, folder, name, stage, steps=1),
        "coder": coder,
        "code_prediction": code_prediction,
        "data.val_limit": 1,
        "init_from": "none",
    }
    place = run(values)
    rows = figures(place)
    assert all(finite(row) for row in rows)
    (training,) = (row for row in rows if "train/loss" in row)
    assert ("train/code_ce" in training) == (code_prediction != "none")
    assert ("train/codebook" in training) == (coder != "factorized")
    (validated,) = (row for row in rows if "val/loss" in row)
    assert all(validated[f"val/bpp/{k}"] > 0 for k in range(4))
    weights = checkpoint(place)["state_dict"]
    predictors = {key.rpartition("predictor.")[0] for key in weights if "predictor." in key}
    expected = {
        "none": set(),
        "supervision": {"code_loss."},
        # One predictor under two names: the loss trains the one that the network uses.
        "network": {"code_loss.", "model.refiner."},
    }
    assert predictors == expected[code_prediction]


def test_lambda_takes_one_value_or_one_per_rate(pictures: Path, tmp_path: Path) -> None:
    def made(lmbda: str) -> list[float]:
        values = {**settings(pictures, tmp_path, "lambda", "transform"), "stage.lmbda": lmbda}
        return instantiate(compose(values).stage.module).lmbda.tolist()

    assert made("3") == [3.0] * 4
    assert made("[1,2,4,8]") == [1, 2, 4, 8]
    with pytest.raises(Exception, match="lmbda has 2 values for the model's 4 rate points"):
        made("[1,2]")


@pytest.mark.parametrize(
    ("experiment", "crop"), [("paper_natural", 256), ("paper_facial", 512), ("paper_f8", 256)]
)
def test_the_papers_settings(experiment: str, crop: int) -> None:
    for stage in STAGES:
        cfg = chosen(stage, experiment=experiment)
        assert cfg.data.crop == crop
        assert cfg.batch == cfg.data.batch_size == 8
        assert cfg.stage.optimizer._target_ == "torch.optim.AdamW"
        assert cfg.stage.module.codebook.beta == 0.25
        assert cfg.stage.module.optimization.accumulate == 1
        assert cfg.perceptual.net == "vgg"
        assert cfg.perceptual.required
        assert cfg.model.num_rates == 4

    first = chosen("vqvae", experiment=experiment).stage
    assert first.distortion_weights == {"l1": 1.0, "lpips": 1.0}
    assert first.module.adversarial.weight == 0.8
    assert first.codebook_weight == 1.0
    assert first.module.adversarial.start > 0  # an early discriminator ruins the stage

    second = chosen("transform", experiment=experiment).stage
    assert second.weights == {"rate_y": 1.0, "rate_z": 1.0, "codebook": 1.0}
    assert second.distortion_weights == {"code_ce": 0.5, "latent_mse": 1.0}

    third = chosen("joint", experiment=experiment).stage
    assert third.weights == {"rate_y": 1.0, "rate_z": 1.0, "codebook": 1.0}
    assert third.module.adversarial.weight == 0.8
    # 0.05 x [0.5 x cross-entropy + squared distance]
    assert third.distortion_weights == {
        "l1": 1.0,
        "lpips": 1.0,
        "code_ce": pytest.approx(0.05 * 0.5),
        "latent_mse": pytest.approx(0.05 * 1.0),
    }


@pytest.mark.parametrize(
    ("experiment", "model", "f", "codes", "hyper"),
    [
        ("paper_natural", "natural", 16, 16384, 16384),
        ("paper_facial", "facial", 32, 1024, 1024),
        ("paper_f8", "natural_f8", 8, 256, 256),
    ],
)
def test_the_papers_models(experiment: str, model: str, f: int, codes: int, hyper: int) -> None:
    cfg = chosen("transform", experiment=experiment)
    assert cfg.model.name == model
    assert cfg.model.codebook_size == codes
    assert cfg.model.hyper_codebook_size == hyper  # as large as C
    assert 2 ** (len(cfg.model.encoder.multipliers) - 1) * cfg.model.encoder.stem == f
    assert cfg.model.window == 32
    assert cfg.model.channels == 256
    assert (cfg.model.predictor_layers, cfg.model.predictor_width, cfg.model.predictor_heads) == (9, 512, 8)
    assert not cfg.model.projected_codebooks
    assert cfg.data.stride % (4 * f) == 0  # z lies at a quarter of the latent's resolution
    if cfg.data.val_crop is not None:
        assert cfg.data.val_crop % (4 * f) == 0


def test_objects_get_the_values_of_the_configuration(pictures: Path, tmp_path: Path) -> None:
    values = {
        **settings(pictures, tmp_path, "values", "vqvae"),
        "stage.adversarial_weight": 0.3,
        "stage.discriminator_start": 7,
        "stage.clip": 2.5,
        "stage.accumulate": 3,
        "stage.optimizer.lr": 0.125,
        "callbacks.ema.decay": 0.5,
        "seed": 11,
    }
    cfg = compose(values)
    stage = instantiate(cfg.stage.module)
    assert isinstance(stage.adversarial, AdversarialLoss)
    assert isinstance(stage.reconstruction, ReconstructionLoss)
    assert (stage.adversarial.weight, stage.adversarial.start) == (0.3, 7)
    assert (stage.optimization.clip, stage.optimization.accumulate) == (2.5, 3)
    optimizer = stage.optimization.optimizer([torch.nn.Parameter(torch.zeros(1))])
    assert isinstance(optimizer, torch.optim.AdamW)
    assert optimizer.param_groups[0]["lr"] == 0.125
    assert stage.seed == 11
    assert isinstance(instantiate(cfg.callbacks.ema), MovingAverage)
    assert stage.distortion_weights == {"l1": 1.0}  # without the weights of LPIPS, which may be missing here


def test_a_batch_is_divided_among_devices_and_passes() -> None:
    values = {
        "stage": "vqvae",
        "data.train": "a",
        "data.val": "b",
        "runs_dir": "runs",
        "name": "x",
        "batch": 48,
    }
    assert compose(values).data.batch_size == 48
    values |= {"trainer.devices": 2, "trainer.num_nodes": 3, "stage.accumulate": 4}
    assert compose(values).data.batch_size == 2
    with pytest.raises(Exception, match=r"batch=49 does not divide among trainer.devices=2"):
        print(compose({**values, "batch": 49}).data.batch_size)
    with pytest.raises(Exception, match=r"trainer.devices=auto: give the number"):
        print(compose({**values, "trainer.devices": "auto"}).data.batch_size)
