import pickle
import subprocess
import sys
import tarfile
import time
from io import BytesIO

import fsspec
import numpy as np
import pytest

from glc.data.shards import index_shards, read_shard
from glc.data.sources import resolve
from glc.data.urls import open_url, read_url
from glc.jobs.storage import expand
from tests.data.servers import refusing, serving
from tests.data.test_module import keys, module


def found(pattern):
    """Shards that a pattern stands for; fsspec gives files in memory a third slash."""
    return [name.replace(":///", "://") for name in resolve(pattern, "data.train").shards]


@pytest.fixture
def memory(shards):
    """The packed folder in fsspec's memory file system."""
    system = fsspec.filesystem("memory")
    for path in shards.iterdir():
        system.pipe_file(f"/photos/{path.name}", path.read_bytes())
    yield "memory://photos"
    system.rm("/photos", recursive=True)


def records(url):
    return [(record.key, record.data) for record in read_shard(url)]


def big_shard(path, count=40, side=250_000):
    """Write a shard of 10 MB of noise."""
    path.parent.mkdir(exist_ok=True)
    noise = np.random.default_rng(0)
    with tarfile.open(path, "w") as tar:
        for i in range(count):
            info = tarfile.TarInfo(f"{i:03d}.png")
            info.size = side
            tar.addfile(info, BytesIO(noise.bytes(side)))
    return path


@pytest.mark.parametrize("ranges", [True, False])
def test_a_shard_of_several_ranges_from_a_web_server(ranges, tmp_path):
    big_shard(tmp_path / "big.tar")
    with serving(tmp_path, ranges) as server:
        assert records(f"{server.url}/big.tar") == records(str(tmp_path / "big.tar"))


def test_a_shard_is_streamed(tmp_path):
    size = big_shard(tmp_path / "big.tar").stat().st_size
    with serving(tmp_path) as server:
        assert next(read_shard(f"{server.url}/big.tar")).key == "000"
        assert 0 < server.sent < 0.7 * size


@pytest.mark.parametrize("end", ["manifest.json", ""])
def test_a_packed_folder_at_a_url(end, shards, memory):
    names = [f"train-{i:06d}.tar" for i in range(3)]
    assert resolve(f"{memory}/{end}", "data.train").shards == [f"memory://photos/{name}" for name in names]
    with serving(shards) as server:
        given = resolve(f"{server.url}/{end}", "data.train").shards
        assert given == [f"{server.url}/{name}" for name in names]
        assert records(given[1]) == records(f"memory://photos/{names[1]}") == records(str(shards / names[1]))


def test_patterns_are_listed_by_the_store(shards, memory):
    names = [f"{memory}/train-{i:06d}.tar" for i in range(3)]
    assert found(f"{memory}/*") == names
    assert found(f"{memory}/train-00000{{0,2}}*.tar") == [names[0], names[2]]
    (cached,) = expand(f"simplecache::{memory}/*1.tar")
    assert cached.startswith("simplecache::memory://")
    assert records(cached) == records(names[1])
    fsspec.filesystem("memory").rm("/photos/manifest.json")
    assert found(f"{memory}/") == names
    with serving(shards) as server:  # by the links of its page
        assert [name.rpartition("/")[2] for name in resolve(f"{server.url}/*.tar", "data.val").shards] == [
            name.rpartition("/")[2] for name in names
        ]
    with pytest.raises(ValueError, match=r"^data\.val: no shards match memory://photos/\*\.tarr"):
        resolve(f"{memory}/*.tarr", "data.val")


def test_a_newer_manifest_and_a_dead_store_are_named(memory):
    fsspec.filesystem("memory").pipe_file("/photos/manifest.json", b'{"format_version": 9}')
    with pytest.raises(ValueError, match=r"^data\.train: .*photos/manifest.json: format version is 9"):
        resolve(f"{memory}/", "data.train")
    with pytest.raises(ValueError, match=r"^data\.train: http://.*Cannot connect to.*; correct the URL$"):
        resolve(f"{refusing()}/photos/*.tar", "data.train")


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("store", ["memory", "web server"])
def test_training_streams_from_a_store_into_workers(store, workers, shards, images, memory):
    with serving(shards) as server:
        urls = f"{memory if store == 'memory' else server.url}/train-{{000000..000002}}.tar"
        local = module(f"{shards}/*.tar", images, num_workers=workers)
        remote = module(urls, urls, num_workers=workers)
        remote.setup("fit")  # opens connections before the workers are forked
        assert keys(remote.train_dataloader()) == keys(local.train_dataloader())
        assert len(remote.val_dataloader()) == 12
        source = pickle.loads(pickle.dumps(remote.train_dataloader().dataset.source))
        assert source.describe() == "3 training shards (12 images)"  # by the manifest at the URL


def test_compressed_shards(shards, tmp_path):
    plain = shards / "train-000000.tar"
    for name in ("a.tar.gz", "b.tgz"):
        with tarfile.open(plain) as tar, tarfile.open(tmp_path / name, "w:gz") as packed:
            for member in tar:
                packed.addfile(member, tar.extractfile(member))
        assert records(str(tmp_path / name)) == records(str(plain))
        assert len(index_shards([str(tmp_path / name)])) == 4
    assert resolve(tmp_path, "data.train").shards == [str(tmp_path / "a.tar.gz"), str(tmp_path / "b.tgz")]


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("pipe:cat {shard}; exit 3", "the command failed with exit code 3"),
        ("pipe:echo no such bucket >&2; false", "failed with exit code 1: no such bucket"),
        ("pipe:nosuchcommand", "failed with exit code 127: .*not found"),
        ("nosuch://a.tar", "Protocol not known: nosuch"),
        ("memory://nowhere.tar", "no such file"),
        ("file:///nowhere.tar", "no such file"),
    ],
)
def test_what_cannot_be_opened_is_one_line(url, message, shards):
    cut = shards.parent / "half.tar"
    cut.write_bytes((shards / "train-000000.tar").read_bytes()[:3000])
    with pytest.raises(OSError, match=message) as caught:
        records(url.format(shard=cut))
    assert "\n" not in str(caught.value)


def test_http_errors_are_told_apart(tmp_path):
    with serving(tmp_path) as server, pytest.raises(OSError, match=r"^404 "):
        read_url(f"{server.url}/a.tar")
    with pytest.raises(OSError, match=r"^Cannot connect to host 127"):
        read_url(f"{refusing()}/a.tar")


def test_a_missing_package_is_named_with_the_command_instead(monkeypatch):
    for name in ("s3fs", "gcsfs"):
        monkeypatch.setitem(sys.modules, name, None)
    known = sys.modules["fsspec.registry"]._registry
    for protocol in ("s3", "gs", "gcs"):
        if protocol in known:
            monkeypatch.delitem(known, protocol)
    with pytest.raises(
        OSError, match=r"pip install 'glc-codec\[s3\]', or give pipe:aws s3 cp s3://b/a.tar -"
    ):
        read_url("s3://b/a.tar")
    with pytest.raises(OSError, match=r"glc-codec\[gs\]', or give pipe:gcloud storage cat gs://b/a.tar$"):
        read_url("gs://b/a.tar")


def test_closing_ends_a_command_and_what_it_started(tmp_path):
    mark = tmp_path / "mark"
    started = time.monotonic()
    with open_url(f"pipe:echo a; (sleep 30; touch {mark}) & sleep 30") as file:
        assert file.read(1) == b"a"
    assert time.monotonic() - started < 5
    assert not subprocess.run(["pgrep", "-f", str(mark)], capture_output=True, check=False).stdout
