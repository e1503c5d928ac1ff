"""The manifest of a packed set: what `glc pack` writes last and what readers check shards against."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

FORMAT_VERSION = 1
MANIFEST = "manifest.json"


class PackError(ValueError):
    """Packing cannot start or go on, or a packed set is damaged; the message says why and what to do."""


@dataclass
class ShardRecord:
    """One shard: file name, pictures in it, bytes, hash; `skipped` has name and reason of those left out."""

    name: str
    count: int
    bytes: int
    sha256: str
    skipped: list[dict[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Manifest:
    """A packed set: the settings that made it and its shards, in order."""

    name: str
    settings: dict[str, Any]
    shards: list[ShardRecord]

    @property
    def count(self) -> int:
        """Pictures in all shards."""
        return sum(shard.count for shard in self.shards)

    @property
    def bytes(self) -> int:
        """Bytes of all shards."""
        return sum(shard.bytes for shard in self.shards)

    @property
    def skipped(self) -> list[dict[str, str]]:
        """Pictures left out, in order: dicts with `name` and `reason`."""
        return [picture for shard in self.shards for picture in shard.skipped]

    def to_json(self) -> str:
        """Text of `manifest.json`."""
        totals = {
            "shards": len(self.shards),
            "count": self.count,
            "bytes": self.bytes,
            "skipped": len(self.skipped),
        }
        content = {
            "format_version": FORMAT_VERSION,
            "name": self.name,
            "totals": totals,
            "settings": self.settings,
            "shards": [asdict(shard) for shard in self.shards],
        }
        return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def read_manifest(folder: str | os.PathLike[str]) -> Manifest:
    """Read a folder's `manifest.json`.

    Raises:
        FileNotFoundError: there is none.
        PackError: it is damaged, or of a newer format.
    """
    path = Path(folder) / MANIFEST
    content = load_json(path)
    version = content.get("format_version")
    if version != FORMAT_VERSION:
        raise PackError(f"{path}: format version {version}, this program reads {FORMAT_VERSION}")
    try:
        shards = [ShardRecord(**shard) for shard in content["shards"]]
        return Manifest(content["name"], content["settings"], shards)
    except (KeyError, TypeError) as error:
        raise PackError(f"{path}: damaged ({error!r}); pack again with --force") from error


def load_json(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Raises:
        FileNotFoundError: there is none.
        PackError: it holds something else; the message names it.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise PackError(f"{path}: not readable as JSON ({error}); remove it and pack again") from error
    if not isinstance(content, dict):
        raise PackError(f"{path}: unexpected content; remove it and pack again")
    return content


def write_atomically(path: Path, text: str) -> None:
    """Write a small text file through a temporary one beside it, so that readers never see half of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
