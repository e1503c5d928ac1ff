"""`glc push` in this process; tests/test_hub.py runs it against a hub."""

import hashlib
import json
from pathlib import Path

import pytest

import glc.hub
from glc.codec.weights.labels import read_header
from tests.cli.conftest import Glc


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """The files that `glc push` hands to the hub."""
    files: dict[str, bytes] = {}

    def push(repo: str, given: dict, message: str, private: bool) -> str:
        assert (repo, message, private) == ("me/new", "Publish small.safetensors", True)
        files.update(
            {name: data if isinstance(data, bytes) else data.read_bytes() for name, data in given.items()}
        )
        return "0" * 40

    monkeypatch.setattr(glc.hub, "push", push)
    return files


def test_digests_of_a_known_model(glc: Glc, models: Path, sent: dict[str, bytes]) -> None:
    assert glc("push", "small", "me/new", "--private").output == f"hf://me/new@{'0' * 40}\n"
    header = read_header(models / "small.safetensors")
    found = json.loads(sent["digests.json"])
    assert found == {
        "encoder_fingerprint": header.metadata["encoder_fingerprint"],
        "fingerprint": header.metadata["fingerprint"],
        "tables_sha256": hashlib.sha256(header.metadata["tables"].encode()).hexdigest(),
    }
    assert sent["model.safetensors"] == (models / "small.safetensors").read_bytes()


@pytest.mark.parametrize("front", ["", "---\nlicense: mit\n---\n"])
def test_a_card_of_the_user_gets_the_facts(front: str, glc: Glc, sent: dict[str, bytes]) -> None:
    Path("card.md").write_text(f"{front}# My model\n")
    assert glc("push", "small", "hf://me/new", "--private", "--card", "card.md").exit_code == 0
    text = sent["README.md"].decode()
    assert text.count("---\n") == 2
    assert text.startswith(front or "---\nlibrary_name: glc\n")
    assert "# My model\n\n## model.safetensors\n" in text
    assert hashlib.sha256(sent["model.safetensors"]).hexdigest() in text


def test_refusals(glc: Glc, models: Path, sent: dict[str, bytes], tmp_path: Path) -> None:
    corrupt = tmp_path / "corrupt.safetensors"
    data = bytearray((models / "small.safetensors").read_bytes())
    data[-1] ^= 1
    corrupt.write_bytes(data)
    for arguments, code, text in [
        ((corrupt, "me/new"), 1, f"Error: {corrupt}: corrupt: the content does not match its "),
        (("small", "new"), 1, "Error: hf://new: write hf://OWNER/NAME"),
        (("small", "me/new@main"), 2, "give OWNER/NAME without a revision"),
        (("none", "me/new"), 1, "Error: there is no model 'none'"),
        (("small", "me/new", "--card", "none.md"), 1, "Error: none.md: No such file or directory"),
    ]:
        done = glc("push", *arguments)
        assert done.exit_code == code
        assert text in done.output
    assert sent == {}
