"""Object stores: the same shards as in a folder, and the three operations that must be atomic."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from glc.jobs.engines import Engine
from glc.jobs.manifest import Folder, JobError
from glc.jobs.run import UnfinishedError
from glc.jobs.storage import LocalStore, UrlStore, open_store, stamp
from glc.jobs.tar_shards import find_shards, refuse_overwriting
from tests.data.servers import refusing, serving
from tests.jobs.stand_ins import KillAt, Killed, Reverser, code, contents

Patch = pytest.MonkeyPatch


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """Address of a server that speaks S3's protocol, with the bucket `bucket`."""
    for package in ("s3fs", "moto", "flask", "flask_cors"):
        pytest.importorskip(package, reason="needs the extra `s3` and moto")
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(params=["memory", "s3"])
def root(request: pytest.FixtureRequest, monkeypatch: Patch, tmp_path: Path) -> str:
    """URL of an empty folder in a store."""
    if request.param == "memory":
        fsspec.filesystem("memory").store.clear()
        return "memory://bucket/folder"
    given = {"ACCESS_KEY_ID": "x", "SECRET_ACCESS_KEY": "x", "DEFAULT_REGION": "us-east-1"}
    for name, value in {**given, "ENDPOINT_URL": request.getfixturevalue("s3")}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    system = fsspec.filesystem("s3")
    if not system.exists("bucket"):
        system.mkdir("bucket")
    return f"s3://bucket/{tmp_path.name}"


def upload(folder: Path, url: str) -> None:
    for path in folder.iterdir():
        with fsspec.open(f"{url}/{path.name}", "wb") as file:
            file.write(path.read_bytes())


def download(url: str) -> dict[str, bytes]:
    store = open_store(url)
    return {name: store.read(name) or b"" for name in store.list("")}


def test_a_job_from_and_to_a_store_gives_the_files_of_a_local_one(
    shards: Path, root: str, tmp_path: Path
) -> None:
    code(shards, tmp_path / "local")
    upload(shards, f"{root}/in")
    for given in (f"{root}/in", f"{root}/in/*.tar", f"{root}/in/in-{{0..2}}.tar"):
        assert [s.path for s in find_shards([given])] == [f"{root}/in/in-{i}.tar" for i in range(3)]
    totals = code(f"{root}/in", f"{root}/out")
    assert totals["done"] == 13
    assert download(f"{root}/out") == contents(tmp_path / "local")
    # And from the store to a folder: what was written there is read.
    code(f"{root}/in/in-{{0..2}}.tar", tmp_path / "back")
    assert contents(tmp_path / "back") == contents(tmp_path / "local")
    with pytest.raises(ValueError, match="overwritten"):
        refuse_overwriting(find_shards([f"{root}/in"]), f"{root}/in/", "choose another")


def test_a_kill_before_or_after_any_step_loses_nothing(
    shards: Path, root: str, tmp_path: Path, monkeypatch: Patch
) -> None:
    """Also between the upload of a shard and its record, and between the record and the move."""
    code(shards, tmp_path / "local")
    expected = contents(tmp_path / "local")
    step = 0
    while step < 100:
        step += 1 if root.startswith("memory") else 4
        place, killing = f"{root}/{step}", KillAt(step)
        with monkeypatch.context() as patch:
            for name in ("create", "move", "remove"):
                patch.setattr(UrlStore, name, killing(getattr(UrlStore, name)))
            try:
                code(shards, place)
                break
            except Killed:
                pass
        code(shards, place)
        assert download(place) == expected
    assert 20 < step < 100


@pytest.mark.parametrize("at", ["1-1.txt", "2-4.txt"])
def test_force_over_a_job_that_works_leaves_the_shards_of_the_last_settings(
    shards: Path, root: str, tmp_path: Path, at: str
) -> None:
    class Interrupting(Reverser):
        def process_file(self, data: bytes, name: str) -> Any:
            if name == at:
                code(shards, f"{root}/out", settings={"command": "other"}, force=True, keep=False)
            return super().process_file(data, name)

    code(shards, tmp_path / "local", settings={"command": "other"}, keep=False)
    with pytest.raises((JobError, UnfinishedError), match="another command has started anew there"):
        code(shards, f"{root}/out", make=lambda rank: Interrupting(keep=True))
    assert download(f"{root}/out") == contents(tmp_path / "local")


def test_of_many_writers_one_creates_a_file(root: str, tmp_path: Path) -> None:
    for store in (open_store(root), LocalStore(tmp_path)):
        won: list[int] = []

        def write(number: int, store: Any = store, won: list[int] = won) -> None:
            if store.create("record", str(number).encode()):
                won.append(number)

        threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1 or root.startswith("memory")  # fsspec's memory has no lock
        assert not store.create("record", b"late")
        if not root.startswith("memory"):
            assert store.read("record") == str(won[0]).encode()


def test_after_a_fence_nothing_is_created_or_moved(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    store.makedirs("run")
    assert store.create("run/a", b"a")
    store.fence("run")
    for action in (lambda: store.create("run/b", b"b"), lambda: store.move("run/a", "a")):
        with pytest.raises(FileNotFoundError):
            action()
    assert list(tmp_path.iterdir()) == []


def test_a_replaced_object_of_the_same_size_has_another_stamp(root: str) -> None:
    found = []
    for content in (b"one", b"two"):
        with fsspec.open(f"{root}/x.tar", "wb") as file:
            file.write(content)
        found.append(stamp(f"{root}/x.tar"))
    assert [s.bytes for s in found if s is not None] == [3, 3]
    assert found[0] != found[1]
    assert stamp(f"{root}/none.tar") is None


def test_a_store_that_cannot_be_used_is_one_line(shards: Path, monkeypatch: Patch) -> None:
    with pytest.raises(OSError, match=r"^nosuch://x: [^\n]*$"):
        code(shards, "nosuch://x")
    import builtins

    real = builtins.__import__
    with monkeypatch.context() as patch:
        patch.setattr(fsspec, "url_to_fs", lambda url: real("gcsfs_is_missing"))
        with pytest.raises(OSError, match=r"^gs://x: the package .*pip install 'glc-codec\[gs\]'$"):
            Folder("gs://x", {}).prepare([])


def test_a_server_that_cannot_be_reached_is_not_a_missing_file(tmp_path: Path) -> None:
    """fsspec reports both as a missing file; a shard would count as missing, its samples as lost."""
    with serving(tmp_path) as server:
        assert stamp(f"{server.url}/a.tar") is None
    with pytest.raises(OSError, match=r"^http://\S+: Cannot connect to host") as caught:
        stamp(f"{refusing()}/a.tar")
    assert not isinstance(caught.value, FileNotFoundError)


def test_a_missing_bucket_is_not_created(shards: Path, s3: str, monkeypatch: Patch) -> None:
    for name, value in {"ACCESS_KEY_ID": "x", "SECRET_ACCESS_KEY": "x", "ENDPOINT_URL": s3}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    with pytest.raises(OSError, match=r"^s3://a-typo/out"):
        code(shards, "s3://a-typo/out")
    assert not fsspec.filesystem("s3").exists("a-typo")


def test_an_upload_that_fails_leaves_the_shard_for_the_next_command(
    shards: Path, root: str, monkeypatch: Patch
) -> None:
    system = fsspec.url_to_fs(root)[0]
    with monkeypatch.context() as patch:

        def refuse(*_: Any, **__: Any) -> None:
            raise RuntimeError("the store is full")

        patch.setattr(system, "put_file", refuse)
        with pytest.raises(UnfinishedError, match=r"3 of 3 shards .*the store is full"):
            code(shards, f"{root}/out", engine=Engine())
    assert code(shards, f"{root}/out")["done"] == 13
