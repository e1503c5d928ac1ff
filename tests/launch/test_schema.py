"""Values are compared with what their keys accept, on the command line, in Python and in yaml files."""

import inspect
from pathlib import Path
from typing import Any

import lightning
import pytest
from omegaconf import DictConfig, OmegaConf

from glc.launch import UsageError, compose
from glc.launch.evaluate import evaluate
from glc.launch.overrides import examine, explain_overrides
from glc.launch.schema import TRAINER_ARGUMENTS, _leaves, conform, kind_of
from glc.launch.train import train

STAGE = ["stage=transform", "model=tiny", "data=folder", "data.train=a", "data.val=b"]
EVALUATION = ["codec=jpeg", "out=results", "testset.path=images"]


@pytest.mark.parametrize("word", ["no", "No", "off", "OFF", "n", "false", "0"])
def test_booleans_are_read_as_a_person_types_them(word: str) -> None:
    keys = ["overwrite", "data.flip", "trainer.deterministic", "perceptual.required", "model.checkpointing"]
    cfg = compose("train", [*STAGE, *(f"{key}={word}" for key in keys)])
    assert [OmegaConf.select(cfg, key) for key in keys] == [False] * 5
    assert cfg.model.encoder.checkpointing is False
    evaluation = compose("evaluate", [*EVALUATION, f"keep={word}", f"wandb={word}"])
    assert (evaluation.keep, evaluation.wandb) == (False, False)


def test_booleans_reach_hydra_as_true_or_false() -> None:
    """The jobs of a sweep and Hydra's record of the configuration have the same values."""
    words = ["overwrite=no", "-m", "data.flip=yes,off", "+trainer.barebones=n", "name=no", "resume=on"]
    assert examine([*STAGE, *words]).args.overrides[5:] == [
        *("overwrite=false", "data.flip=true,false", "+trainer.barebones=false", "name=no", "resume=on")
    ]


@pytest.mark.parametrize(
    ("word", "key", "value"),
    [
        ("trainer.max_steps=02", "stage.schedule.total", 2),
        ("trainer.max_steps=1e3", "trainer.max_steps", 1000),
        ("stage.optimizer.lr=1", "stage.optimizer.lr", 1),
        ("stage.clip='0.5'", "stage.clip", 0.5),
        ("trainer.deterministic=warn", "trainer.deterministic", "warn"),
        ("trainer.devices='0,1'", "trainer.devices", [0, 1]),
        ("stage.lmbda=[1,'2',3,4]", "stage.lmbda", [1, 2, 3, 4]),
        ("name=007", "name", "007"),
        ("init_from=none", "init_from", "none"),
        ("data.weights=[0.7,'3']", "data.weights", [0.7, 3]),
        ("data.member=mask.png", "data.member", "mask.png"),
        (
            "data.crop=[{from_step:'0',sizes:{64:1}},{from_step:9,sizes:{64:0.5,128:'0.5'}}]",
            "data.crop",
            [{"from_step": 0, "sizes": {64: 1}}, {"from_step": 9, "sizes": {64: 0.5, 128: 0.5}}],
        ),
        ("trainer.precision=BF16-mixed", "trainer.precision", "bf16-mixed"),
    ],
)
def test_values_get_the_type_of_their_key(word: str, key: str, value: Any) -> None:
    found = OmegaConf.select(compose("train", [*STAGE, "data.batch_size=2", word]), key)
    assert found == value
    assert isinstance(found, type(value) if not isinstance(value, list) else object)


@pytest.mark.parametrize(
    ("word", "accepted"),
    [
        ("overwrite=maybe", "true or false (or yes, no, on, off)"),
        ("data.flip=2", "true or false"),
        ("stage.clip=-1", "a number of at least 0 (0: no clipping)"),
        ("trainer.max_steps=abc", "an integer of at least -1"),
        ("trainer.max_steps=2.5", "an integer of at least -1"),
        ("stage.optimizer.lr=-1", "a number of at least 0"),
        ("stage.optimizer.lr=nan", "a number of at least 0"),
        ("stage.optimizer.betas=0.9", "a list of two numbers from 0 to 1, such as [0.9,0.999]"),
        ("stage.schedule.hold=3", "a number from 0 to 1"),
        ("stage.lmbda=abc", "a number above 0, or a list of them, one per rate point"),
        ("stage.lmbda=[1,2,0,4]", "a number above 0, or a list of them, one per rate point"),
        ("stage.optimizer=null", ""),
        ("model.codebook_size=0", "an integer of at least 1"),
        ("model.window=0", "an integer of at least 1, or null"),
        ("data.num_workers=abc", "an integer of at least 0"),
        ("data.train=null", "a folder, shards, a list of images, or a list of them"),
        ("data.weights=[0.7,0]", "a list such as [A,B], each a number above 0, or null"),
        ("data.weights=0.7", "a list such as [A,B], each a number above 0, or null"),
        (
            "data.crop=wide",
            "an integer of at least 1, or a schedule [{from_step:0,sizes:{256:0.5,512:0.5}},...]",
        ),
        ("data.crop=[{from:0,sizes:{64:1}}]", "an integer of at least 1, or a schedule [{from_step:0,"),
        ("data.crop=[{from_step:0,sizes:{64:-1}}]", "an integer of at least 1, or a schedule [{from_step:0,"),
        ("data.augment=flip", "a list of mappings, [{_target_: TRANSFORM, ...}], or null"),
        ("data.scale_batch=maybe", "true or false"),
        ("seed=null", "an integer of at least 0"),
        ("perceptual.net=vgg19", "vgg, alex or squeeze"),
        ("callbacks.ema.decay=x", "a number from 0 to below 1"),
        ("+trainer.limit_train_batches=1.5", "a number of batches, or a share from 0.0 to 1.0, or null"),
        ("+trainer.gradient_clip_val=1", "the maximum norm as stage.clip="),
        ("+trainer.accumulate_grad_batches=2", "the batches per step as stage.accumulate="),
        ("trainer.accelerator=gpus", "auto, cpu, gpu, cuda, mps or tpu"),
    ],
)
def test_other_values_are_refused_with_what_is_accepted(word: str, accepted: str) -> None:
    message = explain_overrides([*STAGE, word])
    assert message is not None
    assert message.startswith(f"{word.lstrip('+')}: not valid; {'give ' if accepted else ''}{accepted}")
    with pytest.raises(UsageError) as caught:
        compose("train", [*STAGE, word])
    assert str(caught.value) == message


def test_values_of_a_sweep_are_refused_before_its_first_job() -> None:
    message = explain_overrides(["-m", *STAGE, "stage.lmbda=1,2,abc"])
    assert message == (
        "stage.lmbda=abc: not valid; give a number above 0, or a list of them, one per rate point"
    )
    assert explain_overrides(["-m", *STAGE, "stage.lmbda=1,2", "seed=range(0,3)"]) is None


@pytest.mark.parametrize(
    ("word", "accepted"),
    [
        ("processes=0", "an integer of at least 1"),
        ("keep=maybe", "true or false"),
        ("target_bpp=-1", "a number above 0"),
        ("optimize_latent=x", "an integer of at least 0"),
        ("testset.limit=none_of_them", "an integer of at least 1, or null"),
    ],
)
def test_evaluation_settings_are_checked(word: str, accepted: str) -> None:
    message = explain_overrides([*EVALUATION, word], "evaluate")
    assert message is not None
    assert message.startswith(f"{word}: not valid; give {accepted}")
    cfg = compose("evaluate", EVALUATION)
    key, _, value = word.partition("=")
    OmegaConf.update(cfg, key, value)
    with pytest.raises(UsageError, match=key):
        evaluate(cfg)


def test_a_changed_configuration_is_checked_again() -> None:
    cfg = compose("train", STAGE)
    cfg.stage.clip = -1
    with pytest.raises(UsageError, match=r"^stage\.clip=-1: not valid; give a number of at least 0"):
        train(cfg)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A user's configuration: an experiment, a model and a data module."""
    texts = {
        "experiment/mine.yaml": "# @package _global_\nstage:\n  clip: 'x'\n",
        "experiment/typed.yaml": "# @package _global_\noverwrite: 'Off'\nstage: {clip: '2'}\n",
        "model/mine.yaml": (
            "defaults: [tiny]\nflag: true\nsteps: 3\n"
            "encoder: {_target_: mine.Encoder, num_blocks: auto, channels: -1}\n"
            "decoder: {channels: 20, num_blocks: 1}\n"
        ),
        "data/mine.yaml": "_target_: mine.Data\ntrain: null\ncrop: large\nflip: both\n",
    }
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_values_in_a_users_yaml_are_checked(folder: Path) -> None:
    with pytest.raises(UsageError, match=r"^stage\.clip=x: not valid; give a number of at least 0"):
        compose("train", [*STAGE, "experiment=mine"], folder)
    cfg = compose("train", [*STAGE, "experiment=typed"], folder)
    assert (cfg.overwrite, cfg.stage.clip) == (False, 2)


def test_a_users_own_keys_are_free(folder: Path) -> None:
    words = ["stage=vqvae", "model=mine", "data=mine", "model.steps=auto", "model.flag=no", "data.stride=x"]
    cfg = compose("train", ["+data.stride=1", *words[:-1]], folder)
    assert (cfg.data.crop, cfg.data.flip, cfg.data.train) == ("large", "both", None)
    assert (cfg.model.encoder.num_blocks, cfg.model.encoder.channels) == ("auto", -1)
    assert (cfg.model.steps, cfg.model.flag) == ("auto", False)


def leaves(cfg: DictConfig) -> dict[str, Any]:
    found = {}
    for holder, key, name, _ in _leaves(cfg):
        raw = OmegaConf.to_container(holder, resolve=False)[key]  # type: ignore[call-overload,index]
        if raw is None or isinstance(raw, bool | int | float | list):
            found[name] = raw
    return found


FREE = (
    "model.refiner",
    "model.predictor",
    "discriminator.augment",
    "trainer.max_time",
    "trainer.val_check_interval",
)
"""Null or a section; a time, as Lightning reads it."""


STAGES = ["vqvae", "transform", "joint", "restoration", "stylization", "gate", "polish"]


@pytest.mark.parametrize("stage", STAGES)
def test_every_number_and_switch_of_ours_has_a_type(stage: str) -> None:
    more = ["degradation=mixture"] if stage == "restoration" else []
    for words in (
        ["model=small", "trainer=slurm", "metrics=full_64"],
        ["model=tiny", "model/variants=[fsq,fsq_hyper]"],
        ["model/variants=indices_map", "perceptual=mix", "discriminator=projected"],
    ):
        cfg = examine([f"stage={stage}", *words, *more]).cfg
        assert cfg is not None
        missing = [
            key
            for key in leaves(cfg)
            if kind_of(cfg, "train", key) is None
            and key not in (*FREE, "stage.previous", "stage.discriminator_optimizer", "model.coder")
            and not key.startswith(("trainer.strategy.", "trainer.plugins.", "degradation.weights."))
        ]
        assert missing == []


def test_every_number_and_switch_of_an_evaluation_has_a_type() -> None:
    for testset in ("kodak", "shards", "coco30k"):
        cfg = examine([f"testset={testset}"], "evaluate").cfg
        assert cfg is not None
        typed = (key for key in leaves(cfg) if not key.startswith("codecs."))
        assert [key for key in typed if kind_of(cfg, "evaluate", key) is None] in ([], ["testset.pattern"])


def test_the_trainers_arguments_are_those_of_lightning() -> None:
    assert set(inspect.signature(lightning.Trainer).parameters) - {"self"} == TRAINER_ARGUMENTS


def test_the_configuration_is_not_changed() -> None:
    cfg = compose("train", STAGE)
    cfg.overwrite = "no"
    OmegaConf.set_readonly(cfg, True)
    before = OmegaConf.to_yaml(cfg)
    assert conform(cfg, "train").overwrite is False
    assert OmegaConf.to_yaml(cfg) == before


def test_a_schedule_without_a_length_names_the_keys_that_give_one() -> None:
    message = explain_overrides([*STAGE, "trainer.max_steps=0"])
    assert message is not None
    assert message.startswith("trainer.max_steps=0: the schedule needs a length; give trainer.max_steps, or ")
