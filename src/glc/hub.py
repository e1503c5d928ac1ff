"""Weights files on the Hugging Face hub, by name: `hf://OWNER/NAME` or `hf://OWNER/NAME@REVISION`.

A repository holds one weights file, written by `glc push`:

```
model.safetensors   the weights file
README.md           the model card
digests.json        fingerprints, digest of the frequency tables
SHA256SUMS          SHA-256 of the files above, as `sha256sum` writes it
```

`download` reads SHA256SUMS and model.safetensors of one commit into the hub's cache, verifies the checksum,
and executes nothing of the repository. REVISION is a branch, a tag or a commit; a commit pins the content.
With HF_HUB_OFFLINE=1, and where the hub is unreachable, the cache is used. HF_ENDPOINT, HF_HOME and
HF_TOKEN work as everywhere in huggingface_hub, which this module needs: the extra `hub`.
"""

import hashlib
import logging
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from glc.errors import WeightsError

WEIGHTS_FILE = "model.safetensors"
SUMS_FILE = "SHA256SUMS"
_LARGEST_SUMS = 1 << 16

# `Path` turns "hf://" into "hf:/".
_NAME = re.compile(r"hf:/{1,2}(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")
_log = logging.getLogger(__name__)


def is_on_hub(name: str | Path) -> bool:
    """Whether a model's name is one of the hub."""
    return str(name).startswith("hf:/")


def parse_repo(name: str | Path) -> tuple[str, str | None]:
    """Return the OWNER/NAME and the revision of a name.

    Raises:
        WeightsError: it has another form.
    """
    match = _NAME.fullmatch(str(name))
    if match is None:
        raise WeightsError(f"{name}: write hf://OWNER/NAME or hf://OWNER/NAME@REVISION")
    return match["repo"], match["revision"]


@lru_cache
def download(name: str) -> Path:
    """Return the weights file of a repository, in the cache. Asks the hub once per process.

    Raises:
        WeightsError: the repository, the revision or a file does not exist, the hub is unreachable and the
            file not in the cache, the checksum differs, or huggingface_hub is not installed; one line.
    """
    repo, revision = parse_repo(name)
    url = f"hf://{repo}" + (f"@{revision}" if revision else "")
    sums = _fetch(url, repo, SUMS_FILE, revision)
    commit = sums.parent.name  # both files of one commit, also if the branch moves meanwhile
    wanted = _checksum(url, sums)
    file = _fetch(url, repo, WEIGHTS_FILE, commit)
    with open(file, "rb") as opened:
        found = hashlib.file_digest(opened, "sha256").hexdigest()
    if found != wanted:
        raise WeightsError(
            f"{url}: checksum mismatch: {WEIGHTS_FILE} has SHA-256 {found[:16]}..., {SUMS_FILE} says "
            f"{wanted[:16]}...; delete {file.resolve()} and load again"
        )
    _log.debug("%s: commit %s, pin it with hf://%s@%s", url, commit, repo, commit)
    return file


def push(repo: str, files: Mapping[str, bytes | Path], message: str, private: bool = False) -> str:
    """Write files to a repository, which is created if it does not exist, in one commit; return the commit.

    SHA256SUMS is added.

    Args:
        repo: OWNER/NAME.
        files: content or path of each file by its name in the repository.
        message: of the commit.
        private: whether a new repository is private.

    Raises:
        WeightsError: the hub is unreachable or refuses, or huggingface_hub is not installed; one line.
    """
    hub = _library(repo)
    sums = "".join(f"{_sha256(content)}  {name}\n" for name, content in sorted(files.items()))
    operations = [
        hub.CommitOperationAdd(path_in_repo=name, path_or_fileobj=content)
        for name, content in {**files, SUMS_FILE: sums.encode()}.items()
    ]
    try:
        api = hub.HfApi()
        api.create_repo(repo, private=private, exist_ok=True)
        return str(api.create_commit(repo, operations, commit_message=message).oid)
    except (OSError, ValueError, RuntimeError, hub.errors.HTTPError) as error:
        raise WeightsError(f"{repo}: {_reason(hub, error, None)}") from error


def _library(name: str) -> Any:
    try:
        import huggingface_hub.constants
        import huggingface_hub.errors
    except ModuleNotFoundError as error:
        text = f"{name}: needs the package huggingface_hub: pip install 'glc-codec[hub]'"
        raise WeightsError(text) from error
    return huggingface_hub


def _fetch(url: str, repo: str, file: str, revision: str | None) -> Path:
    """Return a file of a repository in the cache."""
    hub = _library(url)
    try:
        return Path(hub.hf_hub_download(repo, file, revision=revision))
    except (OSError, ValueError, RuntimeError, hub.errors.EntryNotFoundError, hub.errors.HTTPError) as error:
        raise WeightsError(f"{url}: {_reason(hub, error, file)}") from error


def _reason(hub: Any, error: BaseException, file: str | None) -> str:
    """Return what happened, and what to do, as one line."""
    errors = hub.errors
    if isinstance(error, errors.GatedRepoError):
        return "access is restricted; request it on the repository's page, and set HF_TOKEN"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "no such repository, or a private one; check the name, or set HF_TOKEN"
    if isinstance(error, errors.RevisionNotFoundError):
        return "no such revision; give a branch, a tag or a commit of the repository"
    if isinstance(error, errors.LocalEntryNotFoundError):
        offline = hub.constants.HF_HUB_OFFLINE
        why = "HF_HUB_OFFLINE is set" if offline else f"{hub.constants.ENDPOINT} is unreachable"
        return f"{file} is not in the cache, and {why}"
    if isinstance(error, errors.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set"
    if isinstance(error, errors.EntryNotFoundError):
        return f"the repository has no {file}; `glc push` writes one"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return f"the hub refuses (status {status}); set HF_TOKEN to a token that may write"
    text = " ".join(str(error).split()) or type(error).__name__
    if "/xet-" in text:  # the library does not fall back
        text += "; for a hub without Xet storage set HF_HUB_DISABLE_XET=1"
    return text


def _checksum(url: str, sums: Path) -> str:
    """Return the SHA-256 of the weights file that SHA256SUMS states."""
    with open(sums, encoding="utf-8", errors="replace") as file:
        lines = file.read(_LARGEST_SUMS).splitlines()
    for line in lines:
        value, _, name = line.partition(" ")
        if name.lstrip(" *") == WEIGHTS_FILE and re.fullmatch("[0-9a-f]{64}", value):
            return value
    raise WeightsError(f"{url}: {SUMS_FILE} has no line for {WEIGHTS_FILE}; write it with `glc push`")


def _sha256(content: bytes | Path) -> str:
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    with open(content, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
