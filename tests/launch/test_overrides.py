"""Messages for invalid overrides, and the names of a sweep's jobs."""

import re
import shlex
from pathlib import Path

import pytest
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from glc.launch.config import UsageError
from glc.launch.overrides import (
    RENAMED,
    SWEPT_KEYS,
    command_line,
    compose,
    examine,
    explain_overrides,
    remember_swept_keys,
    swept_name,
)

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
def test_a_mistyped_key_is_reported_with_suggestions(words: list[str], key: str, meant: str | None) -> None:
    message = explain_overrides(words)
    assert message is not None
    assert message.startswith(f"{key}: no such key; ")
    if meant:
        assert "did you mean" in message
        assert meant in message.split("did you mean")[1].replace("?", "").split()


@pytest.mark.parametrize(
    "words",
    [
        [STAGE],
        ["--cfg", "job", STAGE],
        ["-m", STAGE, "stage.codebook_weight=0.5,1", "seed=1,2,3"],
        [STAGE, "model=tiny,small", "seed=range(0,3)"],
        [STAGE, "+trainer.profiler=simple"],
        [STAGE, "++trainer.profiler=simple"],
        [STAGE, "~callbacks.panel"],
        [STAGE, "hydra.run.dir=somewhere", "hydra/launcher=basic", "hydra.verbose=true"],
        [STAGE, "experiment=demo", "model/variants=[factorized,no_code_prediction]", "logger=csv"],
        [STAGE, "stage.optimizer={lr: 1, betas: [0, 1]}"],
        [STAGE, "trainer={max_steps: 3, devices: 2}"],
        [STAGE, "+stage.losses={edge: {_target_: mine.Edge, width: 1}}"],
        [STAGE, "stage.optimizer.betas=[0.5,0.9]", "data.train=[a,b]"],
        [STAGE, "data.train='a/b=c.tar'"],
        ["stage=transform", "stage.lmbda=[1,2,3,4]"],
        ["stage=joint", "experiment=[paper,small]", "stage.distortion_weights.lpips=0"],
        [STAGE, "model/variants=refiner", "stage.schedule.hold=0.5", "seed=007", "trainer.max_steps=1e3"],
    ],
)
def test_valid_overrides_pass(words: list[str]) -> None:
    assert explain_overrides(words) is None


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A user's configuration folder: new models, a new group, and a primary configuration."""
    folder = tmp_path / "my conf"
    texts = {
        "model/mine.yaml": "defaults: [tiny]\nname: mine\nown_key: 1\n",
        "extra/some.yaml": "strength: 2\n",
        "mine.yaml": f"defaults: [train, _self_]\nhydra: {{searchpath: ['{folder}/more']}}\nseed: 7\n",
        "more/model/further.yaml": "defaults: [tiny]\nname: further\n",
    }
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_groups_and_keys_of_the_users_folders_are_valid(mine: Path) -> None:
    words = [STAGE, "model=mine", "model.own_key=2", "+extra=some"]
    for folder in (["--config-dir", str(mine)], ["-cd", str(mine)], [f"hydra.searchpath=['{mine}']"]):
        assert explain_overrides([*folder, *words]) is None
        assert "model.own_key" in (explain_overrides([*folder, STAGE, "model=mine", "model.own_kye=2"]) or "")
        assert "give one of facial, mine, natural" in (explain_overrides([*folder, STAGE, "model=1"]) or "")
        assert "trainer.devices" in (explain_overrides([*folder, *words, "trainer.devcies=2"]) or "")
    assert "no such folder" in (explain_overrides(["--config-dir", str(mine / "no"), STAGE]) or "")
    message = explain_overrides([STAGE, "model=mine", "model.own_key=2"])
    assert message == "model=mine: no such choice; give one of facial, natural, natural_f8, small, tiny"
    own = ["--config-dir", str(mine), "--config-name", "mine", STAGE]
    assert explain_overrides([*own, "model=further"]) is None
    assert "model.name" in (explain_overrides([*own, "model=further", "model.nmae=x"]) or "")


def test_compose_in_a_program(mine: Path) -> None:
    data = ["data=folder", "data.train=a", "data.val=b"]
    cfg = compose("train", [STAGE, "model=mine", "model.own_key=5", "batch=6", *data], config_dir=mine)
    assert (cfg.model.own_key, cfg.model.name, cfg.data.batch_size) == (5, "mine", 6)
    assert cfg.dir == "runs/mine/vqvae"
    found = compose("train", [STAGE, "model=mine", f"hydra.searchpath=['{mine}']", "name=x", *data])
    assert found.dir == "runs/x/vqvae"
    cfg = compose("mine", [STAGE, "model=further"], config_dir=mine)
    assert (cfg.seed, cfg.model.name) == (7, "further")
    assert compose("evaluate", ["codec=jpeg", "out=x"]).threads == 1
    with pytest.raises(UsageError, match="sed: no such key; did you mean seed"):
        compose("train", [STAGE, "sed=1"])
    with pytest.raises(UsageError, match=r"^model=mine: no such choice; give one of .* tiny$"):
        compose("train", [STAGE, "model=mine"])
    with pytest.raises(UsageError, match=r"^model=variants/refiner: part of .* give model/variants=refiner$"):
        compose("train", [STAGE, "model=variants/refiner"])


def test_the_command_line_uses_the_users_folder_and_resets_hydra(
    mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    seen: list[DictConfig] = []
    words = [STAGE, "model=mine", "data=folder", "data.train=a", "data.val=b"]

    def task(cfg: DictConfig) -> None:
        seen.append(cfg)
        assert Path(cfg.dir) == tmp_path / "elsewhere"  # Hydra's output folder, not the default of a program

    command_line(task, "train", ["--config-dir", str(mine), *words, "hydra.run.dir=elsewhere"])
    command_line(task, "train", [*words, f"hydra.searchpath=['{mine}']", "hydra.run.dir=elsewhere"])
    assert [cfg.model.own_key for cfg in seen] == [1, 1]
    assert not HydraConfig.initialized()


def test_keys_of_the_chosen_groups_are_valid() -> None:
    # `refiner.predictor` exists with one variant only.
    key = "model.refiner.predictor.width=32"
    assert explain_overrides([STAGE, "model/variants=refiner", key]) is None
    assert "model.predictor.width" in (explain_overrides([STAGE, key]) or "")
    message = explain_overrides(["trainer.devcies=8"])
    assert message is not None
    assert message.startswith("stage: no value; give stage=..., one of gate, joint, polish, restoration, ")


def test_a_key_below_a_null_is_reported() -> None:
    message = explain_overrides([STAGE, "model/variants=no_code_prediction", "model.predictor.width=3"])
    assert message is not None
    assert "model.predictor_width" in message


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([STAGE, "logger=null"], "logger=null: not a choice; give one of csv, default"),
        (["stage=1"], "stage=1: not a choice; give one of "),
        ([STAGE, "experiment=null"], ", or omit experiment"),
        (["-m", "stage=vqvae,transform"], "stage: cannot be swept"),
        (["stage=nothing"], "stage=nothing: no such choice; give one of gate, joint, polish, restoration, "),
        (
            [STAGE, "experiment=paper_naturl"],
            "experiment=paper_naturl: no such choice; give one of crop_schedule, demo, ",
        ),
        ([STAGE, "sweep=nosuch"], "sweep=nosuch: no such choice; give one of lmbda, optuna"),
        (
            [STAGE, "experiment=[demo,overfitt]"],
            "experiment=overfitt: no such choice (did you mean overfit?)",
        ),
        (
            [STAGE, "experiment=[paper_natural,demo]"],
            "experiment=paper_natural is now experiment=paper model=",
        ),
        (["-m", STAGE, "model=tiny,smal"], "model=smal: no such choice (did you mean small?); give one of "),
        ([STAGE, "experiment=demo/vqvae"], "part of another choice; give experiment=demo stage=vqvae"),
        ([STAGE, "model=variants/refiner"], "part of another choice; give model/variants=refiner"),
    ],
)
def test_a_group_needs_a_choice(words: list[str], message: str) -> None:
    assert message in (explain_overrides(words) or "")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([STAGE, "trainer.limit_train_batches=3"], "Trainer give +trainer.limit_train_batches=3"),
        (
            [STAGE, "trainer.gradient_clip_val=1"],
            "trainer.gradient_clip_val=1: not valid; give the maximum norm as ",
        ),
        ([STAGE, "stage.optimizer.momentum=0.9"], "a new argument is +stage.optimizer.momentum=0.9"),
        ([STAGE, "data.train=a=b.tar"], """give "data.train='a=b.tar'\""""),
        ([STAGE, "data.train=~/images"], """give "data.train='~/images'\""""),
        ([STAGE, "data.train=images (1)"], """give "data.train='images (1)'\""""),
        ([STAGE, "data.train=bücher"], """give "data.train='bücher'\""""),
        ([STAGE, "data.train=[a=b,c]"], """give "data.train=['a=b','c']\""""),
        ([STAGE, "data.train=it's"], """give 'data.train='"'"'it\\'"'"'s'"'"''"""),
        (
            [STAGE, "trainer.devices=[1"],
            "trainer.devices=[1: cannot be read; close its brackets, or quote it",
        ),
        ([STAGE, "overwrite"], "overwrite: not an override; give KEY=VALUE"),
        ([STAGE, "--confg-dir", "x"], "unrecognized arguments: --confg-dir x; see --help"),
        ([STAGE, "--config-dir"], "expected one argument; see --help"),
    ],
)
def test_words_that_cannot_be_used_name_the_word_to_type(words: list[str], message: str) -> None:
    found = explain_overrides(words)
    assert found is not None
    assert message in found
    assert "\n" not in found


def test_the_quoted_form_that_is_offered_can_be_read(mine: Path) -> None:
    for value in ("a=b", "it's", "~/x", "bücher (1)", '"x"=y'):
        message = explain_overrides([STAGE, f"data.train={value}"])
        assert message is not None
        (word,) = shlex.split(message.partition("; give ")[2])
        given = compose("train", [STAGE, word, "data.val=b"]).data.train
        assert given == value


def test_flags_may_stand_between_overrides(mine: Path) -> None:
    words = [STAGE, "--config-dir", str(mine), "model=mine", "-m", "seed=1,2"]
    assert explain_overrides(words) is None
    assert examine(words).args.overrides == [STAGE, "model=mine", "seed=1,2"]


@pytest.mark.parametrize(
    ("config_name", "word", "message"),
    [
        ("train", "coder=factorized", "coder=factorized is now model/variants=factorized"),
        ("train", "coder=transform,factorized", "is now model/variants=transform,factorized"),
        ("train", "code_prediction=none", "is now model/variants=no_code_prediction"),
        ("train", "code_prediction=network", "is now model/variants=refiner"),
        ("train", "experiment=paper_facial", "is now experiment=paper model=facial"),
        ("train", "trainer=torchrun", "is now trainer=ddp"),
        ("train", "data=kodak", "is now testset=kodak, for glc eval; train on data=folder"),
        ("train", "perceptual.views=true", "is now perceptual.augment=true"),
        ("train", "+stage.unquantized=0.5", "stage.unquantized=0.5 is now stage.quantizer_bypass=0.5"),
        ("train", "callbacks.codebooks.revive_every=50", "is now callbacks.codebooks.restart_every=50"),
        ("evaluate", "data=kodak", "data=kodak is now testset=kodak"),
        ("evaluate", "effort=10", "effort=10 is now optimize_latent=10"),
        ("evaluate", "data.path='a=b'", "data.path='a=b' is now testset.path='a=b'"),
    ],
)
def test_words_of_0_1_are_refused_with_the_new_ones(config_name: str, word: str, message: str) -> None:
    words = [STAGE, word] if config_name == "train" else ["codec=jpeg", "out=x", word]
    assert message in (explain_overrides(words, config_name) or "")


def test_the_new_words_compose() -> None:
    for config_name, table in RENAMED.items():
        for new in table.values():
            words = [word for word in new.split() if re.fullmatch(r"[\w/.]+=[\w-]+", word)]
            if words and "testset" not in new:
                assert explain_overrides([STAGE, *words], config_name) is None
                compose(config_name, [STAGE, *words])


def test_a_job_of_a_sweep_is_named_by_its_swept_values(monkeypatch: pytest.MonkeyPatch) -> None:
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
    # A sweep configured in YAML, alone and with more keys on the command line.
    params = {"stage.lmbda": "1,2", "stage.optimizer.lr": "tag(log, interval(1e-5, 1e-3))", "batch": 8}
    job = ["stage=transform", "stage.lmbda=2", "stage.optimizer.lr=0.5", "batch=8", "seed=1"]
    assert swept_name(job, "otherwise", params) == "stage.lmbda-2_stage.optimizer.lr-0.5"
    remember_swept_keys(["-m", "seed=0,1"])
    assert swept_name(job, "otherwise", params) == "stage.lmbda-2_stage.optimizer.lr-0.5_seed-1"
    assert swept_name(job, "otherwise", None) == "seed-1"
    remember_swept_keys(["stage=transform"])
    assert swept_name(job, "otherwise") == "otherwise"
