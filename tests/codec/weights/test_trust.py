"""Networks of a user's own package in weights files: when they are imported, and that codecs run them."""

import copy
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import glc
from glc.codec.codec import assemble
from glc.codec.weights.architecture import build
from glc.codec.weights.export import export
from glc.codec.weights.file import build_model, read_weights, save_weights
from glc.codec.weights.trust import ENTRY_POINTS, VARIABLE, find_class
from glc.codec.weights.variants import read_variant, save_variant
from glc.errors import ArchitectureError, WeightsError
from glc.io.checkpoint import save_checkpoint
from tests.codec.fixed_model import fixed_codec_weights, fixed_description, fixed_image
from tests.programs import fresh

PACKAGE = "glc_test_package"
NETS = '''
import os

from torch import nn, ones, Tensor

from glc.models.autoencoder import Decoder

NOT_A_CLASS = 3
TABLE = ones(3)


class Function:
    pass


class MyEncoder(nn.Module):
    """Patches of 8 x 8 pixels through one linear layer, scaled by a tensor that is not in its state."""

    def __init__(self, latent_channels: int, scale: float = 1.0) -> None:
        super().__init__()
        self.latent_channels, self.downsampling = latent_channels, 8
        self.patches = nn.Conv2d(3, latent_channels, 8, stride=8)
        self.register_buffer("scale", scale * ones(latent_channels, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.patches(x) * self.scale


class Unfinished(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


class MyDecoder(Decoder):
    def forward(self, latent: Tensor) -> Tensor:
        return -super().forward(latent)


class Huge(MyEncoder):
    def __init__(self, latent_channels: int) -> None:
        super().__init__(latent_channels)
        self.more = nn.Linear(1 << 14, 1 << 14)
'''


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An importable package that nobody trusts; it is not imported yet."""
    folder = tmp_path / "site"
    (folder / PACKAGE).mkdir(parents=True)
    (folder / PACKAGE / "__init__.py").write_text("from .nets import MyEncoder as Short\n")
    (folder / PACKAGE / "nets.py").write_text(NETS)
    (folder / PACKAGE / "broken.py").write_text("raise RuntimeError('not today')\n")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delenv(VARIABLE, raising=False)
    yield folder
    forget()


def forget() -> None:
    """Take back the import of the package."""
    for name in [name for name in sys.modules if name.partition(".")[0] == PACKAGE]:
        del sys.modules[name]


def encoder(**values: object) -> dict[str, object]:
    return {"_target_": f"{PACKAGE}.nets.MyEncoder", "latent_channels": 16, **values}


@pytest.fixture
def file(package: Path, tmp_path: Path) -> Path:
    """A codec's weights file with an encoder of the package's, which has not been imported since."""
    fixed = read_weights(fixed_codec_weights(tmp_path / "fixed.safetensors"))
    description = {**fixed.description, "encoder": encoder(scale=2.0)}
    torch.manual_seed(0)
    model = build_model("made", description, trust=PACKAGE)
    rest = {name: t for name, t in fixed.model.state_dict().items() if not name.startswith("encoder.")}
    model.load_state_dict({**model.state_dict(), **rest})
    path = tmp_path / "mine.safetensors"
    save_weights(path, model.state_dict(), description, fixed.tables, fixed.rates)
    forget()
    return path


def test_an_untrusted_package_is_named_and_not_imported(file: Path) -> None:
    with pytest.raises(WeightsError) as caught:
        glc.load(file, "cpu")
    message = str(caught.value)
    assert message.startswith(f"{file}: '{PACKAGE}.nets.MyEncoder' is not a network of glc")
    for way in (f"trust='{PACKAGE}'", f"--trust {PACKAGE}", f"{VARIABLE}={PACKAGE}", ENTRY_POINTS):
        assert way in message
    assert "\n" not in message
    with pytest.raises(WeightsError, match="not trusted"):
        glc.load(file, "cpu", trust=["another", PACKAGE[:-1], f"{PACKAGE}.netsx"])
    assert PACKAGE not in sys.modules


@pytest.mark.parametrize(
    "trust", [PACKAGE, f"other, {PACKAGE}", [f"{PACKAGE}.nets"], ("other", PACKAGE)], ids=str
)
def test_a_package_can_be_trusted_by_an_argument(file: Path, trust: str | list[str]) -> None:
    assert type(read_weights(file, trust=trust).model.encoder).__name__ == "MyEncoder"


def test_a_package_can_be_trusted_by_the_environment(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, f"other,{PACKAGE}")
    assert type(read_weights(file).model.encoder).__name__ == "MyEncoder"


def test_an_installed_package_can_declare_itself(file: Path, package: Path) -> None:
    info = package / f"{PACKAGE}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {PACKAGE}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{ENTRY_POINTS}]\nmine = {PACKAGE}.nets\n")
    assert type(read_weights(file).model.encoder).__name__ == "MyEncoder"


def test_a_trusted_encoder_keeps_the_fingerprint_of_its_codec(file: Path, tmp_path: Path) -> None:
    weights, plain = read_weights(file, trust=PACKAGE), read_weights(tmp_path / "fixed.safetensors")
    assert weights.fingerprint == plain.fingerprint
    x = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        out = weights.model(x, 1)
        conv = weights.model.encoder.patches
        assert torch.equal(out.latent, 2 * torch.nn.functional.conv2d(x, conv.weight, conv.bias, stride=8))
        assert torch.equal(out.x_hat, plain.model.decode_latent(plain.model.coder(out.latent, 1).latent_hat))


def test_decoding_imports_nothing(package: Path, tmp_path: Path) -> None:
    weights, data = fixed_codec_weights(tmp_path / "fixed.safetensors"), tmp_path / "data.glc"
    data.write_bytes(glc.load(weights, "cpu").compress(fixed_image(64, 96)))
    program = (
        "import sys, glc\n"
        "image = glc.load(sys.argv[1], 'cpu', trust=sys.argv[3]).decompress(open(sys.argv[2], 'rb').read())\n"
        "assert image.size == (96, 64) and sys.argv[3] not in sys.modules\n"
    )
    path = os.pathsep.join([str(package), *sys.path])
    done = fresh(["-c", program, weights, data, PACKAGE], {"PYTHONPATH": path})
    assert done.returncode == 0, done.stderr


def test_non_persistent_buffers_are_computed(file: Path) -> None:
    before = torch.get_rng_state()
    network = read_weights(file, trust=PACKAGE).model.encoder
    assert torch.equal(network.scale, torch.full((16, 1, 1), 2.0))
    assert torch.equal(before, torch.get_rng_state())


def test_fingerprints_cover_a_users_decoder(package: Path, tmp_path: Path) -> None:
    fixed = read_weights(fixed_codec_weights(tmp_path / "fixed.safetensors"))
    description = copy.deepcopy(dict(fixed.description))
    description["decoder"]["_target_"] = f"{PACKAGE}.nets.MyDecoder"
    path = tmp_path / "mine.safetensors"
    save_weights(path, fixed.model.state_dict(), description, fixed.tables, fixed.rates)
    mine = read_weights(path, trust=PACKAGE)
    assert type(mine.model.decoder).__name__ == "MyDecoder"
    assert mine.fingerprint != fixed.fingerprint


def test_user_networks_have_the_same_memory_budget(package: Path, file: Path) -> None:
    weights = read_weights(file, trust=PACKAGE)
    huge = {"_target_": f"{PACKAGE}.nets.Huge", "latent_channels": 16}
    description = {**weights.description, "encoder": huge}
    save_weights(file, weights.model.state_dict(), description, weights.tables, weights.rates)
    with pytest.raises(WeightsError, match=r"mine\.safetensors: .*Huge: .*more than its file has"):
        read_weights(file, trust=PACKAGE)


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        (f"{PACKAGE}.nets.os.system", "cannot be imported"),
        (f"{PACKAGE}.nets.os", "not a subclass of torch.nn.Module"),
        (f"{PACKAGE}.nets.Function", "not a subclass of torch.nn.Module"),
        (f"{PACKAGE}.nets.NOT_A_CLASS", "not a subclass of torch.nn.Module"),
        (f"{PACKAGE}.nets.Decoder", f"defined in '{PACKAGE}'"),
        (f"{PACKAGE}.nets.Missing", "cannot be imported: AttributeError"),
        (f"{PACKAGE}.missing.MyEncoder", "cannot be imported: ModuleNotFoundError"),
        (f"{PACKAGE}.broken.MyEncoder", "cannot be imported: RuntimeError: not today"),
        (PACKAGE, "cannot be imported"),
        (f"{PACKAGE}x.nets.MyEncoder", "its package is not trusted"),
        ("glc.models.glc.Newer", "is not a network of this version of glc"),
    ],
)
def test_only_networks_defined_in_the_package_are_accepted(name: str, complaint: str, package: Path) -> None:
    with pytest.raises(ArchitectureError, match=complaint):
        find_class(name, PACKAGE)


def test_classes_are_found_by_every_import_path(package: Path) -> None:
    assert find_class(f"{PACKAGE}.Short", PACKAGE) is find_class(f"{PACKAGE}.nets.MyEncoder", PACKAGE)
    assert sys.modules[f"{PACKAGE}.nets"].TABLE.device.type == "cpu"


def test_missing_members_are_named(package: Path) -> None:
    description = {**fixed_description(), "encoder": {"_target_": f"{PACKAGE}.nets.Unfinished"}}
    with pytest.raises(
        ArchitectureError, match=r"Unfinished cannot be the encoder: it has no latent_channels"
    ):
        build(description, PACKAGE)


def test_a_variant_may_be_a_users_network(file: Path, tmp_path: Path) -> None:
    weights = read_weights(file, trust=PACKAGE)
    path = tmp_path / "mine.encoder.safetensors"
    state = weights.model.encoder.state_dict()
    save_variant(path, "encoder", state, weights.description["encoder"], weights.fingerprint)
    with pytest.raises(WeightsError, match="is not trusted"):
        glc.load(tmp_path / "fixed.safetensors", "cpu", encoder=path)
    found = assemble(tmp_path / "fixed.safetensors", encoder=path, trust=PACKAGE).model.encoder
    assert torch.equal(found.patches.weight, state["patches.weight"])
    save_variant(path, "encoder", {}, {"_target_": f"{PACKAGE}.nets.Unfinished"}, weights.fingerprint)
    with pytest.raises(WeightsError, match=r"mine\.encoder\.safetensors: .*Unfinished cannot be the encoder"):
        read_variant(path, "encoder", trust=PACKAGE)


def test_a_checkpoint_with_a_users_network_is_exported_when_it_is_trusted(file: Path, tmp_path: Path) -> None:
    weights = read_weights(file, trust=PACKAGE)
    module = {"model": weights.description}
    state = {f"model.{name}": tensor for name, tensor in weights.model.state_dict().items()}
    recipe = {"stage": {"name": "joint", "module": module}}
    save_checkpoint({"glc": {"format": 1, "recipe": recipe}, "state_dict": state}, tmp_path / "last.ckpt")
    out = tmp_path / "out.safetensors"
    with pytest.raises(WeightsError, match=rf"last\.ckpt: .*--trust {PACKAGE}"):
        export(tmp_path / "last.ckpt", out)
    assert not out.exists()
    export(tmp_path / "last.ckpt", out, trust=PACKAGE)
    assert read_weights(out, trust=PACKAGE).description["encoder"] == encoder(scale=2.0)
    assert read_weights(out, trust=PACKAGE).fingerprint == weights.fingerprint
