"""`glc push`: publish a weights file on the Hugging Face hub."""

import hashlib
import json
from pathlib import Path

import click

from glc.hub import SUMS_FILE, WEIGHTS_FILE


@click.command()
@click.argument("file", metavar="FILE|NAME")
@click.argument("repository", metavar="OWNER/NAME")
@click.option(
    "--card",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Text of the model card, such as docs/models/small.md. A table of the file's facts is added.",
)
@click.option("--private", is_flag=True, help="Make a new repository private.")
def push(file: str, repository: str, card: Path | None, private: bool) -> None:
    """Publish the weights FILE, or a known model, in the repository OWNER/NAME of the Hugging Face hub.

    One commit writes model.safetensors, README.md (the card), digests.json and SHA256SUMS. The file is loaded
    first; corrupt files are refused. The environment variable HF_TOKEN holds the access token.
    `glc.load("hf://OWNER/NAME@COMMIT")` and `--model` read it.
    """
    from glc.codec.weights.catalog import find
    from glc.codec.weights.labels import CodecLabel, kind_of, read_header
    from glc.hub import parse_repo
    from glc.hub import push as upload

    repo, revision = parse_repo(f"hf://{repository.removeprefix('hf://')}")
    if revision is not None:
        raise click.UsageError(f"{repository}: give OWNER/NAME without a revision; a push is a new commit")
    path = find(file)
    header = read_header(path)
    if kind_of(header) is CodecLabel:
        from glc.codec.load import load

        load(path, "cpu")  # verifies the digests
    text = None if card is None else card.read_text("utf-8")
    digests = {key: header.metadata[key] for key in sorted(header.metadata) if key.endswith("fingerprint")}
    if CodecLabel.MARK in header.metadata:
        digests["tables_sha256"] = hashlib.sha256(header.metadata[CodecLabel.MARK].encode()).hexdigest()
    use = kind_of(header).parse(header)
    files: dict[str, bytes | Path] = {
        WEIGHTS_FILE: path,
        "digests.json": (json.dumps(digests, indent=2) + "\n").encode(),
        "README.md": _card(repo, path, digests, use.USE.format(self=use), text).encode(),
    }
    commit = upload(repo, files, f"Publish {path.name}", private)
    click.echo(f"hf://{repo}@{commit}")


def _card(repo: str, path: Path, digests: dict[str, str], use: str, text: str | None) -> str:
    """Return the model card: a given text or a short one, and the facts of the file."""
    front = "---\nlibrary_name: glc\npipeline_tag: image-to-image\ntags:\n- image-compression\n---\n\n"
    if text is None:
        text = (
            f"# {repo.partition('/')[2]}\n\nA weights file of glc (`pip install glc-codec`), Generative "
            f"Latent Coding: {use}.\n\n"
            "```python\nimport glc\n\n"
            f'codec = glc.load("hf://{repo}")  # add @COMMIT to pin the weights\n'
            'data = codec.compress("photo.png", quality=50)\nimage = codec.decompress(data)\n```\n'
        )
    with open(path, "rb") as file:
        checksum = hashlib.file_digest(file, "sha256").hexdigest()
    rows = {"bytes": f"{path.stat().st_size:,}", "SHA-256": f"`{checksum}`"}
    rows |= {key.replace("_", " "): f"`{value}`" for key, value in digests.items()}
    table = "".join(f"| {key} | {value} |\n" for key, value in rows.items())
    start = "" if text.startswith("---\n") else front
    return (
        f"{start}{text.rstrip()}\n\n## {WEIGHTS_FILE}\n\n| | |\n|---|---|\n{table}\n"
        f"Verify with `sha256sum -c {SUMS_FILE}`.\n"
    )
