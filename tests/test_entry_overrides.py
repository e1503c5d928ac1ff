"""What the command line says about keys that do not exist."""

import pytest

from src.overrides import explain_unknown_keys

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
    message = explain_unknown_keys(words)
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
        [STAGE, "experiment=demo", "coder=factorized", "code_prediction=none", "logger=csv"],
        [STAGE, "stage.optimizer={lr: 1, betas: [0, 1]}"],
        [STAGE, "trainer={max_steps: 3, devices: 2}"],
        [STAGE, "perceptual.weights_dir={any: 1}"],  # no section: the value replaces a value
        [STAGE, "stage.optimizer.betas=[0.5,0.9]", "data.train=[a,b]"],
        [STAGE, "data.train='a/b=c.tar'"],
        ["stage=transform", "stage.lmbda=[1,2,3,4]"],
        ["stage=joint", "experiment=paper_natural", "stage.distortion_weights.lpips=0"],
        # What Hydra reports well by itself is left to it.
        ["stage=nothing", "trainer.devcies=1"],
        ["trainer.devices=[1"],
    ],
)
def test_what_exists_passes(words: list[str]) -> None:
    assert explain_unknown_keys(words) is None


def test_keys_of_the_chosen_groups_count() -> None:
    # `refiner.predictor` exists with one choice of code_prediction only.
    key = "model.refiner.predictor.width=32"
    assert explain_unknown_keys([STAGE, "code_prediction=network", key]) is None
    assert "model.predictor.width" in (explain_unknown_keys([STAGE, key]) or "")
    # Without a stage there is nothing to compare with; Hydra lists the stages.
    assert explain_unknown_keys(["trainer.devcies=8"]) is None


def test_a_key_below_a_null_is_no_mistake_of_spelling() -> None:
    message = explain_unknown_keys([STAGE, "code_prediction=none", "model.predictor.width=3"])
    assert message is not None
    assert "model.predictor_width" in message
