"""Weights files by `hf://` names, against a stand-in for the hub."""

import hashlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import glc
import glc.hub
import glc.pillow
from glc.cli import main
from tests.codec.fixed_model import fixed_codec_weights, fixed_image
from tests.hub_server import Hub, hub


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fixed_codec_weights(tmp_path_factory.mktemp("weights") / "fixed.safetensors")


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that huggingface_hub in this process and in programs uses, with an empty cache."""
    with hub() as server:
        variables = {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": "secret"}
        for name, value in {**variables, "HF_HUB_DISABLE_XET": "1", "HF_HUB_ETAG_TIMEOUT": "3"}.items():
            monkeypatch.setenv(name, value)
        constants = huggingface_hub.constants  # read from the environment once
        set_endpoint(monkeypatch, server.url)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "home" / "hub"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        glc.hub.download.cache_clear()
        yield server
    glc.hub.download.cache_clear()


def set_endpoint(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


def files_of(weights: Path, **others: bytes) -> dict[str, bytes]:
    data = weights.read_bytes()
    line = f"{hashlib.sha256(data).hexdigest()}  model.safetensors\n"
    return {"model.safetensors": data, "SHA256SUMS": line.encode(), **others}


def forget() -> None:
    """As another process: only the cache on disk remains."""
    glc.hub.download.cache_clear()


def test_a_codec_by_name(server: Hub, weights: Path) -> None:
    commit = server.commit("me/fixed", files_of(weights))
    codec = glc.load("hf://me/fixed", "cpu")
    local = glc.load(weights, "cpu")
    image = fixed_image(40, 50)
    assert codec.compress(image) == local.compress(image)
    assert f"/snapshots/{commit}/" in codec.source
    asked = list(server.asked)
    glc.load(Path("hf://me/fixed"), "cpu", backend="onnx")  # `Path` drops a slash
    assert server.asked == [*asked, "HEAD /me/fixed/resolve/main/SHA256SUMS"]


def test_revisions_pin_the_weights(server: Hub, weights: Path, tmp_path: Path) -> None:
    first = server.commit("me/fixed", files_of(weights))
    server.tags["v1"] = first
    newer = fixed_codec_weights(tmp_path / "newer.safetensors", seed=1)
    second = server.commit("me/fixed", files_of(newer))
    wanted = {"": second, "@main": second, f"@{first}": first, "@v1": first}
    for revision, commit in wanted.items():
        path = glc.hub.download(f"hf://me/fixed{revision}")
        assert path.parent.name == commit
        assert path.read_bytes() == (weights if commit == first else newer).read_bytes()
    # A commit in the cache is used without asking.
    forget()
    server.asked.clear()
    glc.hub.download(f"hf://me/fixed@{first}")
    assert server.asked == []


def test_both_files_are_of_one_commit(server: Hub, weights: Path, tmp_path: Path) -> None:
    """A push between the two requests does not mix two versions."""
    first = server.commit("me/fixed", files_of(weights))
    newer = files_of(fixed_codec_weights(tmp_path / "newer.safetensors", seed=1))
    ask = huggingface_hub.hf_hub_download

    def push_after(repo: str, file: str, revision: str | None) -> str:
        path = ask(repo, file, revision=revision)
        server.commit("me/fixed", newer)
        return path

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(huggingface_hub, "hf_hub_download", push_after)
        assert glc.hub.download("hf://me/fixed").parent.name == first


def test_only_two_files_are_downloaded(server: Hub, weights: Path) -> None:
    server.commit(
        "me/fixed", files_of(weights, **{"modeling.py": b"raise SystemExit", "README.md": b"# card"})
    )
    folder = glc.hub.download("hf://me/fixed").parent
    assert sorted(os.listdir(folder)) == ["SHA256SUMS", "model.safetensors"]


def test_offline_and_unreachable(server: Hub, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.commit("me/fixed", files_of(weights))
    cached = glc.hub.download("hf://me/fixed")
    forget()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert glc.hub.download("hf://me/fixed") == cached
    wanted = r"^hf://me/other: SHA256SUMS is not in the cache, and HF_HUB_OFFLINE is set$"
    with pytest.raises(glc.WeightsError, match=wanted):
        glc.hub.download("hf://me/other")
    with pytest.raises(glc.WeightsError, match=r"^me/fixed: HF_HUB_OFFLINE is set$"):
        glc.hub.push("me/fixed", {"a": b"b"}, "message")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    set_endpoint(monkeypatch, "http://127.0.0.1:9")
    monkeypatch.setattr("time.sleep", lambda _: None)  # it tries six times
    forget()
    assert glc.hub.download("hf://me/fixed") == cached
    wanted = r"^hf://me/other: SHA256SUMS is not in the cache, and http://127.0.0.1:9 is unreachable$"
    with pytest.raises(glc.WeightsError, match=wanted):
        glc.hub.download("hf://me/other")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("hf://me/none", "no such repository, or a private one; check the name, or set HF_TOKEN"),
        ("hf://me/fixed@v9", "no such revision; give a branch, a tag or a commit of the repository"),
        ("hf://me/empty", "the repository has no SHA256SUMS; `glc push` writes one"),
        ("hf://me/half", "the repository has no model.safetensors; `glc push` writes one"),
        ("hf://me/odd", "SHA256SUMS has no line for model.safetensors; write it with `glc push`"),
        ("hf://me", "write hf://OWNER/NAME or hf://OWNER/NAME@REVISION"),
        ("hf://me/fixed/file.safetensors", "write hf://OWNER/NAME or hf://OWNER/NAME@REVISION"),
        ("hf://../fixed@../x", "Repo id must"),
    ],
)
def test_errors_are_one_line(name: str, reason: str, server: Hub, weights: Path) -> None:
    files = files_of(weights)
    server.commit("me/fixed", files)
    server.commit("me/empty", {"README.md": b"# card"})
    server.commit("me/half", {"SHA256SUMS": files["SHA256SUMS"]})
    server.commit("me/odd", {**files, "SHA256SUMS": b"\xff<html>\n"})
    with pytest.raises(glc.WeightsError) as caught:
        glc.load(name, "cpu")
    text = str(caught.value)
    assert text.startswith(f"{name}: {reason}")
    assert "\n" not in text


def test_a_wrong_checksum_is_refused(server: Hub, weights: Path) -> None:
    files = files_of(weights)
    changed = bytearray(files["model.safetensors"])
    changed[-1] ^= 1
    server.commit("me/fixed", {**files, "model.safetensors": bytes(changed)})
    pattern = (
        r"^hf://me/fixed: checksum mismatch: model.safetensors has SHA-256 \w{16}\.\.\., SHA256SUMS says"
    )
    with pytest.raises(glc.WeightsError, match=pattern) as caught:
        glc.load("hf://me/fixed", "cpu")
    # What the message tells to do helps, once the repository is right.
    Path(str(caught.value).partition("delete ")[2].partition(" and load")[0]).unlink()
    server.commit("me/fixed", files)
    assert glc.load("hf://me/fixed", "cpu").fingerprint == glc.load(weights, "cpu").fingerprint


def test_a_cache_that_was_changed_is_refused(server: Hub, weights: Path) -> None:
    server.commit("me/fixed", files_of(weights))
    path = glc.hub.download("hf://me/fixed")
    forget()
    path.resolve().write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(glc.WeightsError, match="checksum mismatch"):
        glc.hub.download("hf://me/fixed")


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    glc.hub.download.cache_clear()
    wanted = r"^hf://me/fixed: needs the package huggingface_hub: pip install 'glc-codec\[hub\]'$"
    with pytest.raises(glc.WeightsError, match=wanted):
        glc.load("hf://me/fixed", "cpu")


def test_the_pillow_plugin_downloads_on_first_use(
    server: Hub, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.init()
    for name in ("OPEN", "SAVE", "EXTENSION", "MIME"):
        monkeypatch.setattr(Image, name, dict(getattr(Image, name)))
    monkeypatch.setattr(Image, "ID", list(Image.ID))
    monkeypatch.setattr(glc.pillow, "_codecs", {})
    monkeypatch.setattr(glc.pillow, "_settings", glc.pillow._settings)
    server.commit("me/fixed", files_of(weights))
    glc.pillow.register(model="hf://me/fixed")
    assert server.asked == []
    path = weights.parent / "photo.glc"
    Image.fromarray(fixed_image(16, 16)).save(path)
    codec = glc.load(weights, "cpu")
    assert np.array_equal(np.asarray(Image.open(path)), np.asarray(codec.decompress(path.read_bytes())))


def test_a_pushed_file_is_loaded_by_the_name_that_is_printed(
    server: Hub, weights: Path, tmp_path: Path
) -> None:
    server.token = "secret"
    done = CliRunner().invoke(main, ["push", str(weights), "me/new"])
    assert done.exit_code == 0, done.output
    name = done.stdout.strip()
    (commit,) = server.commits["me/new"]
    assert name == f"hf://me/new@{commit}"
    files = server.commits["me/new"][commit]
    assert sorted(files) == ["README.md", "SHA256SUMS", "digests.json", "model.safetensors"]
    for line in files["SHA256SUMS"].decode().splitlines():
        checksum, file = line.split("  ")
        assert hashlib.sha256(files[file]).hexdigest() == checksum
    assert len(files["SHA256SUMS"].splitlines()) == 3
    card = files["README.md"].decode()
    assert card.startswith("---\nlibrary_name: glc\n")
    assert 'glc.load("hf://me/new")' in card
    assert hashlib.sha256(weights.read_bytes()).hexdigest() in card
    image = tmp_path / "photo.png"
    Image.fromarray(fixed_image(16, 16)).save(image)
    done = CliRunner().invoke(main, ["compress", str(image), "--model", name, "--quiet"])
    assert done.exit_code == 0, done.output
    assert image.with_suffix(".glc").read_bytes() == glc.load(weights, "cpu").compress(image)


def test_a_push_without_permission(server: Hub, weights: Path) -> None:
    server.token = "another"
    with pytest.raises(glc.WeightsError, match=r"^me/new: the hub refuses \(status 401\); set HF_TOKEN"):
        glc.hub.push("me/new", {"model.safetensors": weights}, "message")
    assert server.commits == {}
