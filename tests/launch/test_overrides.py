"""What the command line says about overrides that cannot be, and how it names the jobs of a sweep."""

import re

import pytest
from hydra import compose, initialize_config_dir

from glc.launch.overrides import CONF, RENAMED, SWEPT_KEYS, explain_overrides, remember_swept_keys, swept_name

STAGE = "stage=vqvae"


@pytest.mark.parametrize(
    ("words", "key", "meant"),
    [
        ([STAGE, "trainer.devcies=8"], "trainer.devcies", "trainer.devices"),
        ([STAGE, "trainer.devices=8", "stage.lmda=1"], "stage.lmda", None),
        (["stage=transform", "stage.lamda=1"], "stage.lamda", "stage.lmbda"),
        ([STAGE, "lr=1e-4"], "lr", "stage.optimizer.lr"),
        ([STAGE, "batch_size=4"], "batch_size", "data.batch_size"),
        ([STAGE, "modell=tiny"], "modell", "model"),
        ([STAGE, "experimnt=demo"], "experimnt", "experiment"),
        ([STAGE, "callbacks.ema.decai=0.9"], "callbacks.ema.decai", "callbacks.ema.decay"),
        (["stage=vqvae,joint", "stage.adversarial_wieght=0.5,1"], "stage.adversarial_wieght", None),
        (["-m", STAGE, "stage.codebook_wait=1,2"], "stage.codebook_wait", "stage.codebook_weight"),
        (["metrics=none", STAGE, "metrics.psnr=1"], "metrics.psnr", None),
        ([STAGE, "stage.optimizer={lrr: 1}"], "stage.optimizer.lrr", "stage.optimizer.lr"),
        ([STAGE, "stage.module={optimization: {cilp: 1}}"], "stage.module.optimization.cilp", None),
        ([STAGE, "trainer={max_steps: 3, devcies: 2}"], "trainer.devcies", "trainer.devices"),
    ],
)
def test_a_mistyped_key_is_answered_with_what_was_meant(
    words: list[str], key: str, meant: str | None
) -> None:
    message = explain_overrides(words)
    assert message is not None
    assert f"there is no key {key!r}" in message
    if meant:
        assert "did you mean" in message
        assert meant in message.split("did you mean")[1].replace("?", "").split()


@pytest.mark.parametrize(
    "words",
    [
        [],
        [STAGE],
        ["--cfg", "job", STAGE],
        ["-m", STAGE, "stage.codebook_weight=0.5,1", "seed=1,2,3"],
        [STAGE, "model=tiny,small", "seed=range(0,3)"],
        [STAGE, "+trainer.profiler=simple"],
        [STAGE, "++trainer.profiler=simple"],
        [STAGE, "~callbacks.panel"],
        [STAGE, "~stage.clip"],
        [STAGE, "hydra.run.dir=somewhere", "hydra/launcher=basic", "hydra.verbose=true"],
        [STAGE, "experiment=demo", "model/variants=[factorized,no_code_prediction]", "logger=csv"],
        [STAGE, "stage.optimizer={lr: 1, betas: [0, 1]}"],
        [STAGE, "trainer={max_steps: 3, devices: 2}"],
        [STAGE, "perceptual.weights_dir={any: 1}"],  # no section: the value replaces a value
        [STAGE, "stage.optimizer.betas=[0.5,0.9]", "data.train=[a,b]"],
        [STAGE, "data.train='a/b=c.tar'"],
        ["stage=transform", "stage.lmbda=[1,2,3,4]"],
        ["stage=joint", "experiment=[paper,small]", "stage.distortion_weights.lpips=0"],
        # What Hydra reports well by itself is left to it.
        ["stage=nothing", "trainer.devcies=1"],
        ["trainer.devices=[1"],
    ],
)
def test_what_exists_passes(words: list[str]) -> None:
    assert explain_overrides(words) is None


def test_keys_of_the_chosen_groups_count() -> None:
    # `refiner.predictor` exists with one variant only.
    key = "model.refiner.predictor.width=32"
    assert explain_overrides([STAGE, "model/variants=refiner", key]) is None
    assert "model.predictor.width" in (explain_overrides([STAGE, key]) or "")
    # Without a stage there is nothing to compare with; Hydra lists the stages.
    assert explain_overrides(["trainer.devcies=8"]) is None


def test_a_key_below_a_null_is_no_mistake_of_spelling() -> None:
    message = explain_overrides([STAGE, "model/variants=no_code_prediction", "model.predictor.width=3"])
    assert message is not None
    assert "model.predictor_width" in message


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([STAGE, "logger=null"], "logger=null: choose one of csv, default"),
        (["stage=1"], "stage=1: choose one of "),
        ([STAGE, "experiment=null"], ", or leave experiment out"),
        (["-m", "stage=vqvae,transform"], "a sweep is of one stage"),
    ],
)
def test_a_group_is_given_a_choice(words: list[str], message: str) -> None:
    assert message in (explain_overrides(words) or "")


@pytest.mark.parametrize(
    ("config_name", "word", "message"),
    [
        ("train", "coder=factorized", "coder=factorized is now model/variants=factorized"),
        ("train", "coder=transform,factorized", "is now model/variants=transform,factorized"),
        ("train", "code_prediction=none", "is now model/variants=no_code_prediction"),
        ("train", "code_prediction=network", "is now model/variants=refiner"),
        ("train", "experiment=paper_facial", "is now experiment=paper model=facial"),
        ("train", "trainer=torchrun", "is now trainer=ddp"),
        ("train", "data=kodak", "is now testset=kodak of an evaluation; train on data=folder"),
        ("evaluate", "data=kodak", "data=kodak is now testset=kodak"),
        ("evaluate", "data.path='a=b'", "data.path='a=b' is now testset.path='a=b'"),
    ],
)
def test_words_of_0_1_are_answered_with_the_new_ones(config_name: str, word: str, message: str) -> None:
    words = [STAGE, word] if config_name == "train" else ["codec=jpeg", "out=x", word]
    assert message in (explain_overrides(words, config_name) or "")


def test_new_words_compose() -> None:
    for config_name, table in RENAMED.items():
        for new in table.values():
            words = [word for word in new.split() if re.fullmatch(r"[\w/.]+=[\w-]+", word)]
            if words and "testset" not in new:
                assert explain_overrides([STAGE, *words], config_name) is None
                with initialize_config_dir(str(CONF), version_base="1.3"):
                    compose(config_name, [STAGE, *words])


def test_a_job_of_a_sweep_is_named_by_what_is_swept_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SWEPT_KEYS, raising=False)
    job = ["stage=transform", "data.train=/a/b.tar", "+stage.lmbda=2", "seed=1", "init_from=/c/d.ckpt"]
    assert swept_name(job, "otherwise") == "otherwise"
    remember_swept_keys(["-m", "stage=transform", "+stage.lmbda=1,2", "seed=range(0,3)"])
    assert swept_name(job, "otherwise") == "stage.lmbda-2_seed-1"
    remember_swept_keys(["-m", "init_from=/c/d.ckpt,/c/e.ckpt"])
    assert swept_name(job, "otherwise") == "init_from--c-d.ckpt"
    remember_swept_keys(["-m", "init_from=[a,small],c"])
    # Brackets and commas in an override would be a list.
    assert swept_name(["init_from=[a/b,small]"], "otherwise") == "init_from-a-b-small"
    # A sweep written in yaml, alone and with more on the command line.
    params = {"stage.lmbda": "1,2", "stage.optimizer.lr": "tag(log, interval(1e-5, 1e-3))", "batch": 8}
    job = ["stage=transform", "stage.lmbda=2", "stage.optimizer.lr=0.5", "batch=8", "seed=1"]
    assert swept_name(job, "otherwise", params) == "stage.lmbda-2_stage.optimizer.lr-0.5"
    remember_swept_keys(["-m", "seed=0,1"])
    assert swept_name(job, "otherwise", params) == "stage.lmbda-2_stage.optimizer.lr-0.5_seed-1"
    assert swept_name(job, "otherwise", None) == "seed-1"
    remember_swept_keys(["stage=transform"])
    assert swept_name(job, "otherwise") == "otherwise"
