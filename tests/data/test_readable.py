"""Sources that cannot be read are refused before training: one line, within the time limit."""

import gzip
import logging
import tarfile
import time

import pytest

from glc.data.module import ImageDataModule
from glc.data.readable import find_readable
from tests.data.servers import refusing, serving, silent
from tests.data.test_module import module
from tests.data.test_urls import big_shard


@pytest.fixture
def bad(shards, images, tmp_path):
    """Shards that cannot be read, by name."""
    whole = (shards / "train-000000.tar").read_bytes()
    (tmp_path / "empty.tar").write_bytes(b"")
    (tmp_path / "zeros.tar").write_bytes(b"\0" * 10240)
    (tmp_path / "junk.tar").write_bytes(b"junk" * 1000)
    (tmp_path / "cut.tar").write_bytes(whole[:600])
    (tmp_path / "cut.tar.gz").write_bytes(gzip.compress(whole)[:120])
    with tarfile.open(tmp_path / "notes.tar", "w") as tar:
        tar.add(__file__, "notes.txt")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("empty.tar", "the file is empty; pack it again, or correct the path"),
        ("zeros.tar", "it contains no image"),
        ("junk.tar", "not a tar file"),
        ("cut.tar", "the tar file is truncated"),
        ("cut.tar.gz", "(is truncated|not a tar file)"),
        ("notes.tar", r"it contains no image \(\.jpg, .*glc pack SOURCE DEST"),
    ],
)
@pytest.mark.parametrize("key", ["train", "val"])
def test_local_shards(key, name, message, bad, images):
    given = {"train": images, "val": images, key: bad / name}
    with pytest.raises(ValueError, match=rf"^data\.{key}: .*/{name}: .*{message}") as caught:
        module(given["train"], given["val"]).setup("fit")
    assert "\n" not in str(caught.value)


def test_urls_and_commands(images, bad):
    with serving(bad) as server:
        for url, message in [
            (f"{refusing()}/a.tar", "Cannot connect to host 127.*; correct the URL or command"),
            (f"{server.url}/none.tar", "404 .*; correct the URL or command"),
            (f"{server.url}/junk.tar", "not a tar file"),
            ("pipe:false", "the command failed with exit code 1; correct the URL or command"),
            ("pipe:true", "the file is empty"),
        ]:
            with pytest.raises(ValueError, match=rf"^data\.train: {url}: .*{message}"):
                module(url, images).setup("fit")


def test_sources_that_never_answer_end_together_after_the_limit(images):
    started = time.monotonic()
    with silent() as url, pytest.raises(ValueError, match=r"no answer within 1 s; .*data\.open_timeout=4"):
        ImageDataModule(
            [f"{url}/a.tar", f"{url}/b-*.tar", "pipe:sleep 60"], "pipe:sleep 60", open_timeout=1
        ).setup("fit")
    assert time.monotonic() - started < 3


def test_a_slow_source_is_accepted(shards, images, tmp_path, caplog):
    whole = (shards / "train-000000.tar").read_bytes()
    (tmp_path / "slow.tar").write_bytes(whole)
    command = f"pipe:head -c 600 {tmp_path}/slow.tar; sleep 0.8; tail -c +601 {tmp_path}/slow.tar"
    data = module(command, images, open_timeout=0.3)
    with caplog.at_level(logging.WARNING):
        data.setup("fit")
    assert "no complete image within 0.3 s, a slow source" in caplog.text
    assert len(next(iter(data.train_dataloader())).key) == 2
    with serving(big_shard(tmp_path / "web" / "big.tar").parent, pause=0.4) as server:
        ImageDataModule(f"{server.url}/big.tar", str(images), open_timeout=0.9).setup("fit")
    assert "/big.tar: no complete image within 0.9 s" in caplog.text


def test_some_bad_shards_among_good_ones_do_not_matter(shards, bad):
    (bad / "empty.tar").replace(bad / "train-0.tar")
    (bad / "train-1.tar").write_bytes((shards / "train-000000.tar").read_bytes())
    found = find_readable({"data.train": f"{bad}/train-*.tar", "data.val": [f"{bad}/train-1.tar"]}, 5)
    assert [len(sources.shards) for sources in found["data.train"]] == [2]
    # An entry of its own must be readable.
    with pytest.raises(ValueError, match=r"train-0\.tar: the file is empty"):
        find_readable({"data.train": [f"{bad}/train-1.tar", f"{bad}/train-0.tar"]}, 5)


def test_no_limit_reads_nothing(bad, images):
    module(bad / "junk.tar", images, open_timeout=0).setup("fit")
