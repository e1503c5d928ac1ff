"""Finding shards, reading their samples, and encoding members."""

import random
import tarfile
from pathlib import Path

import pytest

from glc.jobs.tar_shards import (
    ShardError,
    closing_bytes,
    expand_braces,
    find_shards,
    member_bytes,
    read_samples,
)
from tests.jobs.stand_ins import write_tar


def names(path: Path) -> list[tuple[str, list[str], str | None]]:
    return [(s.key, [suffix for suffix, _ in s.files], s.problem) for s in read_samples(path, str(path))]


def test_finds_shards_by_braces_folder_and_glob(tmp_path: Path) -> None:
    for name in ("a-000.tar", "a-001.tar", "b-000.tar"):
        (tmp_path / name).touch()

    def found(*given: str) -> list[str]:
        return [shard.name for shard in find_shards([str(tmp_path / name) for name in given])]

    assert found("a-{000..001}.tar") == ["a-000.tar", "a-001.tar"]
    assert found("{b,a}-000.tar") == ["b-000.tar", "a-000.tar"]
    assert found("*-000.tar") == ["a-000.tar", "b-000.tar"]
    assert found("") == ["a-000.tar", "a-001.tar", "b-000.tar"]
    # A missing shard is reported when it is read.
    assert found("a-{000..002}.tar")[-1] == "a-002.tar"
    assert find_shards([str(tmp_path / "a-{000..002}.tar")])[-1].stamp() is None
    for given, message in (
        ("c-*.tar", "no shards match"),
        ("a-{0.tar", "braces"),
        ("c.zip", r"end in \.tar"),
    ):
        with pytest.raises(ValueError, match=message):
            found(given)
    (tmp_path / "other").mkdir()
    with pytest.raises(ValueError, match="no shards"):
        found("other")
    (tmp_path / "other" / "a-000.tar").touch()
    with pytest.raises(ValueError, match="same name"):
        found("a-000.tar", "other")


def test_samples_are_files_that_share_a_key(tmp_path: Path) -> None:
    files = {"x/1.jpg": b"a", "x/1.seg.png": b"bb", "x/2.v1.jpg": b"c", "y/2.txt": b"", "x/1.json": b""}
    path = write_tar(tmp_path / "s.tar", files.items())
    assert names(path) == [
        ("x/1", ["jpg", "seg.png"], None),
        ("x/2", ["v1.jpg"], None),
        ("y/2", ["txt"], None),
        ("x/1", [], "duplicate key in this shard"),
    ]
    assert [s.end for s in read_samples(path, "")] == [2048, 3072, 3584, 4096]


def test_unsafe_paths_and_links_are_problems(tmp_path: Path) -> None:
    path = tmp_path / "s.tar"
    with tarfile.open(path, "w") as tar:
        for name, kind in (
            ("../up.jpg", tarfile.REGTYPE),
            ("/etc/x.jpg", tarfile.REGTYPE),
            ("link.jpg", tarfile.SYMTYPE),
            ("folder", tarfile.DIRTYPE),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            tar.addfile(member)
    found = names(path)
    assert [files for _, files, _ in found] == [[]] * 3
    assert "unsafe path" in str(found[0][2])
    assert "unsafe path" in str(found[1][2])
    assert "not a regular file" in str(found[2][2])


def test_a_sparse_file_cannot_take_more_memory_than_the_shard_has(tmp_path: Path) -> None:
    # A GNU sparse header that claims 64 GB: the size in it is not that of what is stored.
    header = tarfile.TarInfo("big.jpg")
    header.size = 0
    raw = bytearray(header.tobuf(tarfile.GNU_FORMAT))
    raw[156:157] = b"S"
    raw[483:495] = b"%011o\0" % (64 << 30)
    raw[148:156] = b" " * 8
    raw[148:156] = b"%06o\0 " % sum(raw)
    (tmp_path / "s.tar").write_bytes(bytes(raw) + closing_bytes(512))
    ((_, files, problem),) = names(tmp_path / "s.tar")
    assert files == []
    assert "not a regular file" in str(problem)


def test_truncated_and_corrupt_shards_raise(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "s.tar", [(f"{i}.txt", bytes([i]) * 700) for i in range(6)])
    good = path.read_bytes()
    end = 6 * (512 + 1024)
    rng = random.Random(0)
    # Wherever it is truncated, even between two files, the loss is reported.
    for size in [0, 1, 512, 1536, 1537, end, *(rng.randrange(end) for _ in range(30))]:
        path.write_bytes(good[:size])
        found = []
        with pytest.raises(ShardError, match=r"s\.tar"):
            found.extend(sample.key for sample in read_samples(path, str(path)))
        assert found == [str(i) for i in range(len(found))]
        assert len(found) <= size // 1536
    for i in range(6):
        bad = bytearray(good)
        bad[i * 1536 + 3] ^= 0xFF  # in a header
        path.write_bytes(bad)
        with pytest.raises(ShardError):
            list(read_samples(path, str(path)))
    path.write_bytes(b"no tar at all" * 100)
    with pytest.raises(ShardError):
        list(read_samples(path, str(path)))


@pytest.mark.parametrize("kind", ["more memory than there is", "no length", "deep"])
def test_a_header_that_tarfile_cannot_parse_raises_shard_error(tmp_path: Path, kind: str) -> None:
    header = tarfile.TarInfo("pax")
    header.type = tarfile.XHDTYPE
    if kind == "deep":
        header.size = 512
        hostile = (header.tobuf(tarfile.PAX_FORMAT) + b"11 path=a\n".ljust(512, b"\0")) * 3000
    else:
        header.size = 1 << 45 if kind == "more memory than there is" else 1 << 64
        hostile = header.tobuf(tarfile.GNU_FORMAT)
    good = member_bytes("0.txt", b"good") + member_bytes("1.txt", b"more files may follow")
    for before, found in ((b"", []), (good, ["0"])):
        path = tmp_path / "s.tar"
        path.write_bytes(before + hostile + closing_bytes(0))
        samples = read_samples(path, str(path))
        assert [next(samples).key for _ in found] == found
        # Where the stack ends in tarfile decides between tarfile's message and ours.
        with pytest.raises(ShardError, match=r"s\.tar: (corrupt|invalid)"):
            next(samples)


def test_errors_of_the_caller_are_not_shard_errors(tmp_path: Path) -> None:
    samples = read_samples(write_tar(tmp_path / "s.tar", [("0.txt", b""), ("1.txt", b"")]), "")
    next(samples)
    with pytest.raises(MemoryError):
        samples.throw(MemoryError)


def test_written_shards_equal_those_of_tarfile(tmp_path: Path) -> None:
    files = [("0.glc", b"GLC" * 300), ("deep/" * 40 + "é.json", b"{}"), ("n.txt", b"")]
    content = b"".join(member_bytes(name, data) for name, data in files)
    assert content + closing_bytes(len(content)) == write_tar(tmp_path / "s.tar", files).read_bytes()


@pytest.mark.parametrize(
    ("pattern", "separator", "names"),
    [
        ("in-{000..002}.tar", "/", ["in-000.tar", "in-001.tar", "in-002.tar"]),
        ("{b,a}/0.tar", "/", ["b/0.tar", "a/0.tar"]),
        ("https://host/in-{0..1}.tar", "/", ["https://host/in-0.tar", "https://host/in-1.tar"]),
        ("plain.tar", "/", ["plain.tar"]),
        (r"in-\{0\}.tar", "/", ["in-{0}.tar"]),  # escaped
        (r"data\in-{0..1}.tar", "\\", [r"data\in-0.tar", r"data\in-1.tar"]),  # a path of Windows
        (r"data\in.tar", "\\", [r"data\in.tar"]),
    ],
)
def test_ranges_and_alternatives_are_expanded(pattern: str, separator: str, names: list[str]) -> None:
    assert expand_braces(pattern, separator=separator) == names


def test_unbalanced_braces_are_refused() -> None:
    with pytest.raises(ValueError, match="alanced"):
        expand_braces("in-{0.tar")
