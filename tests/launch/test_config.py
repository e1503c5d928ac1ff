"""Every choice of the configuration composes and instantiates; the paper's settings hold."""

import itertools
import re
import shlex
from pathlib import Path
from typing import Any

import click
import pytest
import torch
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.errors import MissingConfigException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from glc.cli import main as cli
from glc.launch.overrides import examine
from glc.losses.adversarial import AdversarialLoss
from glc.losses.reconstruction import ReconstructionLoss
from glc.training.callbacks.ema import EMA
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
    write_images,
)

CONF = ROOT / "conf"
MODULES = {"vqvae": VQVAEStage, "transform": TransformStage, "joint": JointStage}


def choices(group: str) -> list[str]:
    found = sorted(path.stem for path in (CONF / group).glob("*.yaml"))
    assert found
    return found


def chosen(stage: str = "vqvae", **groups: str) -> DictConfig:
    """Compose with the given choices, the defaults, and values for the mandatory keys."""
    values: dict[str, Any] = {"stage": stage, **groups, "runs_dir": "runs", "name": "test"}
    if groups.get("data") == "hf":
        values |= {"data.train.path": "here", "data.val.split": "test"}
    elif (
        groups.get("data") in ("shards", "folder")
        or groups.get("experiment") == "crop_schedule"
        or not {"data", "experiment"} & groups.keys()
    ):
        values |= {"data.train": "here", "data.val": "there"}
    if groups.get("callbacks") == "rate_control":
        values["callbacks.rate_control.target_bpp"] = 0.03
    cfg = compose(values)
    OmegaConf.resolve(cfg)
    assert not OmegaConf.missing_keys(cfg)
    return cfg


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test here uses the network."""
    for key, value in QUIET.items():
        monkeypatch.setenv(key, value)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("config")


@pytest.fixture(scope="module")
def images(folder: Path) -> Path:
    return write_images(folder / "images")


@pytest.mark.parametrize(
    ("group", "choice"),
    [
        (group, choice)
        for group in (
            "model",
            "model/variants",
            "data",
            "trainer",
            "callbacks",
            "logger",
            "metrics",
            "sweep",
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


def test_entries_of_a_mixture_are_removed_and_weighted() -> None:
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


def test_every_section_of_an_experiment_belongs_to_a_stage() -> None:
    parts = sorted((CONF / "experiment").glob("*/*.yaml"))
    assert parts
    for path in parts:
        assert path.parent.name in choices("experiment")
        assert path.stem in choices("stage")


def test_an_experiment_changes_each_stage_by_its_section() -> None:
    first, second = (chosen(stage, experiment="paper") for stage in ("vqvae", "transform"))
    assert "imagenet" in first.data.train
    assert (
        "samples" in chosen("vqvae", experiment="paper", data="samples").data.train
    )  # an explicit choice wins
    assert "openimages" in second.data.train
    assert (first.stage.optimizer.lr, second.stage.optimizer.lr) == (4e-5, 1e-4)
    # Fine-tune stages have no section and take the common one.
    assert chosen("restoration", experiment="paper").callbacks.ema.decay == 0.9999


def test_experiments_stack_and_the_last_one_wins() -> None:
    stacked = chosen("transform", experiment="[demo,overfit]")
    assert stacked.name == "test"
    assert (stacked.model.name, stacked.logger.keys()) == ("tiny", {"csv"})  # from one experiment each
    assert stacked.data.flip is False  # from the second
    assert stacked.trainer.max_steps == 500  # the second's overrides the first's section for the stage
    assert stacked.stage.lmbda == [1.0, 4.0, 12.0, 36.0]  # the first's section
    turned = chosen("transform", experiment="[overfit,demo]")
    assert turned.data.flip is True
    assert turned.trainer.max_steps == 400
    assert chosen("transform", experiment="[demo]") == chosen("transform", experiment="demo")


@pytest.mark.parametrize(
    ("words", "missing"),
    [
        (["experiment=paper_naturl"], "experiment/paper_naturl"),
        (["experiment=[demo,smal]"], "experiment/smal"),
        (["sweep=optna"], "sweep/optna"),
        (["model/variants=[factorised]"], "model/variants/factorised"),
    ],
)
def test_a_choice_that_does_not_exist_is_refused(words: list[str], missing: str) -> None:
    with (
        initialize_config_dir(str(CONF), version_base="1.3"),
        pytest.raises(MissingConfigException, match=f"Could not (find|load) '{re.escape(missing)}'"),
    ):
        hydra_compose("train", ["stage=vqvae", *words])


def test_a_variants_coder_replaces_the_models() -> None:
    model = chosen("transform", **{"model/variants": "[factorized,no_code_prediction]"}).model
    assert model.coder.hyper == {"_target_": "glc.models.hyperprior.FactorizedHyperprior", "channels": 256}
    assert model.predictor is None
    indices = chosen("transform", **{"model/variants": "indices_map"}).model.coder
    assert indices.keys() == {"_target_", "latent_channels", "sizes"}


CODERS = {
    "transform": [],
    "factorized": ["factorized"],
    "indices_map": ["indices_map"],
    "fsq": ["fsq", "fsq_hyper"],
    "fsq_indices_map": ["fsq", "indices_map"],
}
PREDICTIONS = {"supervision": [], "none": ["no_code_prediction"], "network": ["refiner"]}
COMBINATIONS = list(itertools.product(CODERS, PREDICTIONS, STAGES[1:]))


@pytest.mark.parametrize(("coder", "prediction", "stage"), COMBINATIONS)
def test_every_combination_trains(
    folder: Path, images: Path, coder: str, prediction: str, stage: str
) -> None:
    name = f"{coder}-{prediction}"
    values = {
        **settings(images, folder, name, stage, steps=1),
        "model/variants": f"[{','.join(CODERS[coder] + PREDICTIONS[prediction])}]",
        "data.val_limit": 1,
        "init_from": "none",
    }
    folder = run(values)
    rows = figures(folder)
    assert all(finite(row) for row in rows)
    (training,) = (row for row in rows if "train/loss" in row)
    assert ("train/code_ce" in training) == (prediction != "none")
    assert ("train/codebook" in training) == (coder not in ("factorized", "fsq"))
    (validated,) = (row for row in rows if "val/loss" in row)
    assert all(validated[f"val/bpp/{k}"] > 0 for k in range(4))
    weights = checkpoint(folder)["state_dict"]
    predictors = {key.rpartition("predictor.")[0] for key in weights if "predictor." in key}
    expected = {
        "none": set(),
        "supervision": {"code_loss."},
        # One predictor under two names: the loss trains the one that the network uses.
        "network": {"code_loss.", "model.refiner."},
    }
    assert predictors == expected[prediction]


def commands_of(path: Path) -> list[str]:
    """Return the commands in the leading comments of a YAML file."""
    lines = itertools.takewhile(lambda line: line.startswith("#"), path.read_text().splitlines())
    head = "\n".join(line.lstrip("# ") for line in lines).replace("\\\n", " ")
    found = re.findall(r"-m src\.(?:train|evaluate) [^`\n]*|glc pack [^`\n]*", head)
    return [re.split(r"\s{2,}\(", command)[0].strip() for command in found]


@pytest.mark.parametrize("path", sorted(CONF.rglob("*.yaml")), ids=lambda p: p.relative_to(CONF).as_posix())
def test_commands_in_yaml_comments_compose_without_missing_values(path: Path) -> None:
    commands = commands_of(path)
    assert commands
    for command in commands:
        program, *words = shlex.split(command.removeprefix("-m "))
        if program == "glc":
            command = cli.get_command(click.Context(cli), "pack")
            assert command is not None
            command.make_context("pack", words[1:])
            continue
        config_name = program.removeprefix("src.")
        values = [word for word in words if "=" in word]
        more = ["dir=runs", "runs_dir=runs"] if config_name == "train" else []
        cfg = examine([*values, *more], config_name).cfg  # of sweeps the first values
        assert cfg is not None
        OmegaConf.resolve(cfg)
        assert not OmegaConf.missing_keys(cfg)


@pytest.mark.parametrize(("sweep", "run_id"), [("s", "abc"), ("s", None), (None, "abc")])
def test_runs_of_an_agent_are_folders_of_their_own(
    monkeypatch: pytest.MonkeyPatch, sweep: str | None, run_id: str | None
) -> None:
    for name, value in (("WANDB_SWEEP_ID", sweep), ("WANDB_RUN_ID", run_id)):
        monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra_compose("train", ["stage=vqvae", "name=n"], return_hydra_config=True)
    expected = "runs/n/vqvae/abc" if sweep and run_id else "runs/n/vqvae"
    assert cfg.dir == cfg.hydra.run.dir == expected


def test_no_yaml_depends_on_the_location_of_the_checkout() -> None:
    for path in CONF.rglob("*.yaml"):
        assert "runtime.cwd" not in path.read_text()


def test_lambda_takes_one_value_or_one_per_rate(images: Path, tmp_path: Path) -> None:
    def made(lmbda: str) -> list[float]:
        values = {**settings(images, tmp_path, "lambda", "transform"), "stage.lmbda": lmbda}
        return instantiate(compose(values).stage.module).lmbda.tolist()

    assert made("3") == [3.0] * 4
    assert made("[1,2,4,8]") == [1, 2, 4, 8]
    with pytest.raises(Exception, match="lmbda: 2 values for the model's 4 rate points"):
        made("[1,2]")


@pytest.mark.parametrize(("model", "crop"), [("natural", 256), ("facial", 512), ("natural_f8", 256)])
def test_the_papers_settings(model: str, crop: int) -> None:
    for stage in STAGES:
        cfg = chosen(stage, experiment="paper", model=model)
        assert cfg.data.crop == crop
        assert cfg.batch == cfg.data.batch_size == 8
        assert cfg.stage.optimizer._target_ == "torch.optim.AdamW"
        assert cfg.stage.module.codebook.beta == 0.25
        assert cfg.stage.module.optimization.accumulate == 1
        assert cfg.perceptual.net == "vgg"
        assert cfg.perceptual.required
        assert cfg.model.num_rates == 4

    first = chosen("vqvae", experiment="paper", model=model).stage
    assert first.distortion_weights == {"l1": 1.0, "lpips": 1.0}
    assert first.module.adversarial.weight == 0.8
    assert first.codebook_weight == 1.0
    assert first.module.adversarial.start > 0  # an early discriminator degrades the stage

    second = chosen("transform", experiment="paper", model=model).stage
    assert second.weights == {"rate_y": 1.0, "rate_z": 1.0, "codebook": 1.0}
    assert second.distortion_weights == {"code_ce": 0.5, "latent_mse": 1.0}

    third = chosen("joint", experiment="paper", model=model).stage
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
    ("model", "f", "codes", "hyper"),
    [("natural", 16, 16384, 16384), ("facial", 32, 1024, 1024), ("natural_f8", 8, 256, 256)],
)
def test_the_papers_models(model: str, f: int, codes: int, hyper: int) -> None:
    cfg = chosen("transform", experiment="paper", model=model)
    assert cfg.model.name == model
    assert cfg.model.codebook_size == codes
    assert cfg.model.hyper_codebook_size == hyper  # the size of C
    assert 2 ** (len(cfg.model.encoder.multipliers) - 1) * cfg.model.encoder.stem == f
    assert cfg.model.window == 32
    assert cfg.model.channels == 256
    assert (cfg.model.predictor_layers, cfg.model.predictor_width, cfg.model.predictor_heads) == (9, 512, 8)
    assert not cfg.model.projected_codebooks
    assert cfg.data.stride % (4 * f) == 0  # z has a quarter of the latent's resolution
    if cfg.data.val_crop is not None:
        assert cfg.data.val_crop % (4 * f) == 0


def test_objects_get_the_values_of_the_configuration(images: Path, tmp_path: Path) -> None:
    values = {
        **settings(images, tmp_path, "values", "vqvae"),
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
    assert isinstance(instantiate(cfg.callbacks.ema), EMA)
    assert stage.distortion_weights == {"l1": 1.0}  # without the weights of LPIPS, which may be missing here


def test_a_batch_is_divided_among_devices_and_accumulation_steps() -> None:
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
    with pytest.raises(Exception, match=r"batch=49: not divisible by trainer.devices=2"):
        print(compose({**values, "batch": 49}).data.batch_size)
    with pytest.raises(Exception, match=r"trainer.devices=auto: unknown number of devices"):
        print(compose({**values, "trainer.devices": "auto"}).data.batch_size)
