"""What the documents print must run: every training command composes, every use of the codec is done."""

import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image

from glc.cli import main
from glc.codec.weights.file import read_weights
from glc.codec.weights.variants import save_variant
from glc.launch.overrides import explain_overrides
from glc.launch.train import register_resolvers
from tests.codec.fixed_model import fixed_codec_weights, fixed_image
from tests.losses.test_perceptual import FILES, reference, save_features

ROOT = Path(__file__).parents[1]
PLACES = {"$D": "data.train=a data.val=b", "STAGE": "joint", "$stage": "joint"}


def commands() -> list[str]:
    found = []
    for path in [
        ROOT / "README.md",
        *sorted((ROOT / "docs").glob("*.md")),
        *sorted((ROOT / "conf").rglob("*.yaml")),
    ]:
        text = path.read_text().replace("\\\n", " ")
        for match in re.finditer(r"python -m src\.train ([^`#\n;(]*[\w$\]])", text):
            arguments = match[1]
            for name, value in PLACES.items():
                arguments = arguments.replace(name, value)
            found.append(re.sub(r"\[[^\]=]*=[^\]]*\]|\\.\.\.|#.*", "", arguments))
    return sorted(set(found))


@pytest.mark.parametrize("command", commands())
def test_commands_compose(command: str) -> None:
    register_resolvers()
    words = [w for w in shlex.split(command) if "=" in w]
    assert explain_overrides(words) is None
    first = [re.sub(r"=([^\[,]*),.*", r"=\1", w) for w in words] if " -m " in f" {command} " else words
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("train", first)
    if not OmegaConf.is_missing(cfg.data, "train"):
        assert cfg.data.batch_size >= 1


def test_there_are_commands() -> None:
    assert len(commands()) >= 10


def codec_commands(document: str) -> list[str]:
    """The lines of a document's shell blocks that use the codec, in their order."""
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / document).read_text(), re.S)
    lines = [line.split("#")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if re.match(r"glc (compress|decompress|info|models)\b", line)]


@pytest.mark.parametrize("document", ["README.md", "docs/codec.md"])
def test_the_codec_is_used_as_printed(document: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    fixed_codec_weights(tmp_path / "mine.safetensors")
    (tmp_path / "WEIGHTS").mkdir()
    save_features(reference("squeeze"), tmp_path / "WEIGHTS" / FILES["squeeze"])
    (tmp_path / "photos" / "summer").mkdir(parents=True)
    for name in ("photo.png", "photos/one.png", "photos/summer/two.png"):
        Image.fromarray(fixed_image(96, 128)).save(name)
    found = codec_commands(document)
    assert len(found) >= 2
    for line in found:
        # The images are tiny and the codec is no good: the sizes of real ones are out of its reach.
        line = re.sub(r"--target-(bpp|size) [\d.]+", r"--target-size 100000", line)
        result = CliRunner().invoke(main, shlex.split(line)[1:])
        assert result.exit_code == 0, (line, result.output)


def test_applications_are_used_as_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    weights = read_weights(fixed_codec_weights(tmp_path / "mine.safetensors"))
    for name, kind in (("denoise", "encoder"), ("mosaic", "decoder")):
        state = getattr(weights.model, kind).state_dict()
        file = f"{name}.{kind}.safetensors"
        save_variant(file, kind, state, weights.description[kind], weights.fingerprint)  # type: ignore[arg-type]
    Image.fromarray(fixed_image(64, 64)).save("noisy.png")
    found = codec_commands("docs/applications.md")
    assert len(found) == 3
    for line in found:
        result = CliRunner().invoke(main, shlex.split(line)[1:])
        assert result.exit_code == 0, (line, result.output)
