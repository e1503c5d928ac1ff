"""The start of a run: the files that are found, opened once each, and the error messages."""

import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from omegaconf import DictConfig

from glc.errors import WeightsError
from glc.io import checkpoint as checkpoints
from glc.launch.start import Start, UsageError, resolve_start
from glc.launch.train import prepare
from tests.short_runs import STAGES, checkpoint, compose, run, settings


@pytest.fixture(scope="module")
def trained(images: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folders of three stages with one run name; tests do not change them."""
    runs = tmp_path_factory.mktemp("runs")
    return {stage: run(settings(images, runs, "all", stage, 1)) for stage in STAGES}


def last(folder: Path) -> Path:
    return folder / "checkpoints" / "last.ckpt"


@pytest.fixture
def options(trained: dict[str, Path], images: Path) -> Any:
    """Compose a configuration with the run name of the trained stages, and changes."""

    def composed(stage: str, **changes: Any) -> DictConfig:
        values = settings(images, trained["vqvae"].parents[1], "all", stage, 2)
        return compose({**values, "overwrite": "true", **changes})

    return composed


def paths(cfg: DictConfig) -> list[Path]:
    return [source.path for source in resolve_start(cfg).sources]


def test_initial_weights_are_init_from_or_the_previous_stage(trained: dict[str, Path], options: Any) -> None:
    first, second = last(trained["vqvae"]), last(trained["transform"])
    assert resolve_start(options("vqvae")) == Start()
    assert paths(options("transform")) == [first]
    assert paths(options("transform", init_from="none")) == []
    for given in (first, first.parent, trained["vqvae"]):
        assert paths(options("transform", init_from=str(given), name="other")) == [first]
    assert paths(options("joint", init_from=f"[{trained['transform']},{first}]")) == [second, first]
    for empty in ("[]", "[none]", "[null,small]"):
        with pytest.raises(UsageError, match="give files or models, or init_from=none"):
            resolve_start(options("transform", init_from=empty))
    with pytest.raises(UsageError, match=r"init_from=.*: no checkpoints/last\.ckpt in this folder"):
        resolve_start(options("transform", init_from=str(first.parents[3])))


def test_the_discriminator_is_that_of_stage_one_or_the_given_one(
    trained: dict[str, Path], options: Any
) -> None:
    given = {"init_from": str(last(trained["transform"]))}

    def found(**changes: Any) -> Path | None:
        source = resolve_start(options("joint", **{**given, **changes})).discriminator
        return source and source.path

    assert found() == last(trained["vqvae"])
    assert found(name="other") is None
    assert found(**{"stage.discriminator_from": "none"}) is None
    assert found(init_from="none") is None
    new = {"init_from": str(last(trained["joint"])), "stage.discriminator_from": "none"}
    assert resolve_start(options("joint", **new)).new_discriminator
    assert not resolve_start(options("joint", init_from=str(last(trained["joint"])))).new_discriminator
    assert found(init_from=str(last(trained["joint"]))) is None  # it contains a discriminator
    assert found(**{"name": "other", "stage.discriminator_from": str(last(trained["joint"]))}) == last(
        trained["joint"]
    )
    with pytest.raises(UsageError, match=r"discriminator_from=nowhere\.ckpt: no such file"):
        found(**{"stage.discriminator_from": "nowhere.ckpt"})


def test_a_folder_hides_a_model_only_if_it_holds_a_checkpoint(
    trained: dict[str, Path], options: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (file,) = paths(options("joint", init_from="small"))
    assert file.name == "small.safetensors"
    (tmp_path / "small").mkdir()  # e.g. a folder of runs
    assert paths(options("joint", init_from="small")) == [file]
    (tmp_path / "small" / "checkpoints").mkdir()
    shutil.copy(last(trained["vqvae"]), tmp_path / "small" / "checkpoints")
    assert paths(options("joint", init_from="small")) == [Path("small", "checkpoints", "last.ckpt")]
    with pytest.raises(WeightsError, match=r"there is no model 'smal' \(available: .*small"):
        resolve_start(options("joint", init_from="smal"))


def test_a_fine_tune_stage_needs_one_codec(trained: dict[str, Path], options: Any) -> None:
    for given in ("small", str(trained["joint"]), str(last(trained["joint"]))):
        start = resolve_start(options("restoration", init_from=given))
        assert start.codec is not None
        assert Path(start.codec.source).stem == ("small" if given == "small" else "last")
    assert resolve_start(options("restoration")).codec is not None  # stage III's of this name
    with pytest.raises(UsageError, match="stage=restoration needs one codec; give one file"):
        resolve_start(options("restoration", init_from=f"[{trained['joint']},codec.safetensors]"))


_opened: Counter[str] = Counter()


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and arguments[1] in ("r", "rb") and str(arguments[0]).endswith(".ckpt"):
        _opened[str(arguments[0])] += 1


class Reads:
    """Counts how often this process opened and hashed each checkpoint."""

    def __init__(self) -> None:
        self.hashed: Counter[str] = Counter()
        _opened.clear()

    def assert_once(self, *files: Path) -> None:
        assert _opened == self.hashed == {str(file): 1 for file in files}


@pytest.fixture(scope="module")
def audited() -> None:
    sys.addaudithook(_note)  # permanent: a hook cannot be removed


@pytest.fixture
def reads(audited: None, monkeypatch: pytest.MonkeyPatch) -> Reads:
    counted = Reads()
    verify = checkpoints.verify

    def noted(file: BinaryIO, path: Path) -> bool:
        counted.hashed[str(path)] += 1
        return verify(file, path)

    monkeypatch.setattr(checkpoints, "verify", noted)
    return counted


def test_a_warm_start_opens_each_file_once(trained: dict[str, Path], options: Any, reads: Reads) -> None:
    prepare(options("transform"))
    reads.assert_once(last(trained["vqvae"]))


def test_a_discriminator_of_another_file_is_opened_once(
    trained: dict[str, Path], options: Any, reads: Reads
) -> None:
    prepare(options("joint"))
    reads.assert_once(last(trained["transform"]), last(trained["vqvae"]))


@pytest.mark.parametrize("stage", ["transform", "joint"])
def test_a_discriminator_of_the_same_file_does_not_reopen_it(
    trained: dict[str, Path], options: Any, reads: Reads, stage: str
) -> None:
    same = {"init_from": str(trained[stage]), "stage.discriminator_from": str(last(trained[stage]))}
    prepare(options("joint", name="other", **same))
    reads.assert_once(last(trained[stage]))


def test_several_sources_are_opened_once_each(trained: dict[str, Path], options: Any, reads: Reads) -> None:
    sources = [last(trained["transform"]), trained["joint"], last(trained["transform"])]
    prepare(options("joint", init_from=f"[{','.join(map(str, sources))}]"))
    reads.assert_once(last(trained["transform"]), last(trained["joint"]))


def test_a_fine_tune_stage_opens_its_codec_once(trained: dict[str, Path], options: Any, reads: Reads) -> None:
    prepare(options("restoration"))
    reads.assert_once(last(trained["joint"]))


def test_resuming_opens_the_checkpoint_once(images: Path, tmp_path: Path, reads: Reads) -> None:
    values = settings(images, tmp_path, "resumed", "vqvae", 2)
    folder = run({**values, "trainer.max_steps": 1})
    reads.assert_once()  # saving reads nothing
    run({**values, "resume": "last"})
    reads.assert_once(last(folder))
    assert checkpoint(folder)["global_step"] == 2


def test_a_stage_that_starts_from_an_unfinished_stage_says_so(
    trained: dict[str, Path], options: Any, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    resolve_start(options("transform"))
    assert "unfinished" not in caplog.text
    content = checkpoint(trained["vqvae"])
    content["glc"]["recipe"]["trainer"]["max_steps"] = 5
    checkpoints.save_checkpoint(content, tmp_path / "stopped.ckpt")
    for stage in ("transform", "joint"):
        caplog.clear()
        resolve_start(options(stage, init_from=str(tmp_path / "stopped.ckpt")))
        assert caplog.messages == [
            f"starting from unfinished stage=vqvae, at step 1 of 5: {tmp_path}/stopped.ckpt"
        ]
