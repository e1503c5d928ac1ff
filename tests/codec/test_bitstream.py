"""Header, checksum, and the error for each kind of corruption."""

import re
import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glc.codec.bitstream import DEFAULT_LIMIT, MAX_SIDE, OVERHEAD, RATE_ONE, VERSION, Header, pack, unpack
from glc.errors import (
    BitstreamError,
    CorruptFileError,
    NewerVersionError,
    NotGlcError,
    SizeLimitError,
    TruncatedError,
)

HEADER = Header(fingerprint=b"\x01\x80\xff\x00", width=768, height=511, rate_index=RATE_ONE + 7)
PAYLOAD = bytes(range(200, 240))
ANY_SIZE = MAX_SIDE * MAX_SIDE


def with_checksum(body: bytes) -> bytes:
    """Append the checksum of the body."""
    return body + struct.pack("<I", zlib.crc32(body))


headers = st.builds(
    Header,
    fingerprint=st.binary(min_size=4, max_size=4),
    width=st.integers(1, MAX_SIDE),
    height=st.integers(1, MAX_SIDE),
    rate_index=st.integers(0, 2**16 - 1),
)
payloads = st.binary(max_size=200).map(lambda data: data.rstrip(b"\0"))


@given(headers, payloads)
def test_pack_unpack_round_trip(header: Header, payload: bytes) -> None:
    assert unpack(pack(header, payload), ANY_SIZE) == (header, payload)


@pytest.mark.parametrize("side", [1, 2, 256, 65535, 65536])
@pytest.mark.parametrize("rate_index", [0, 1, RATE_ONE, 3 * RATE_ONE, 2**16 - 1])
def test_fields_hold_their_extremes(side: int, rate_index: int) -> None:
    for width, height in ((side, 1), (1, side), (side, side)):
        header = Header(fingerprint=b"\xff\0\xff\0", width=width, height=height, rate_index=rate_index)
        assert unpack(pack(header, b""), ANY_SIZE) == (header, b"")


def test_layout_matches_the_documentation() -> None:
    expected = (
        b"GLC" + bytes([1]) + b"\x01\x80\xff\x00" + bytes([0xFF, 0x02, 0xFE, 0x01, 0x07, 0x10]) + PAYLOAD
    )
    assert pack(HEADER, PAYLOAD) == expected + struct.pack("<I", zlib.crc32(expected))


def test_header_and_checksum_take_at_most_20_bytes() -> None:
    header = Header(fingerprint=b"\xff" * 4, width=16384, height=16384, rate_index=2**16 - 1)
    for payload in (b"", b"\x01", PAYLOAD, b"\xff" * 100_000):
        assert len(pack(header, payload)) - len(payload) == OVERHEAD <= 20


@pytest.mark.parametrize(("width", "height"), [(0, 5), (5, 0), (MAX_SIDE + 1, 1), (1, MAX_SIDE + 1), (-1, 1)])
def test_invalid_sizes_are_refused_by_pack(width: int, height: int) -> None:
    with pytest.raises(SizeLimitError, match=f"{width} x {height}"):
        pack(Header(fingerprint=b"abcd", width=width, height=height, rate_index=0), b"")


def test_bytearray_and_memoryview_are_accepted() -> None:
    data = pack(HEADER, PAYLOAD)
    for other in (bytearray(data), memoryview(data)):
        assert unpack(other) == (HEADER, PAYLOAD)  # type: ignore[arg-type]


def test_an_empty_file_is_not_glc() -> None:
    with pytest.raises(NotGlcError, match="empty"):
        unpack(b"")


@pytest.mark.parametrize(
    "data", [b"\x89PNG\r\n\x1a\n" + bytes(50), b"glc\x01" + bytes(50), b"GL ", b"X", bytes(99)]
)
def test_foreign_files_are_not_glc(data: bytes) -> None:
    with pytest.raises(NotGlcError, match="does not start with GLC"):
        unpack(data)


@pytest.mark.parametrize("version", [VERSION + 1, 77, 255])
def test_newer_versions_raise_NewerVersionError(version: int) -> None:
    body = b"GLC" + bytes([version])
    for data in (body, body + b"?", body + pack(HEADER, PAYLOAD)[4:], with_checksum(body + bytes(100))):
        with pytest.raises(NewerVersionError, match=rf"version {version}; .* version {VERSION}: update"):
            unpack(data)


def test_version_zero_is_corrupt() -> None:
    with pytest.raises(CorruptFileError, match="version 0 does not exist"):
        unpack(with_checksum(b"GLC\0" + pack(HEADER, PAYLOAD)[4:-4]))


def test_every_prefix_is_refused() -> None:
    data = pack(HEADER, PAYLOAD)
    for length in range(1, len(data)):
        with pytest.raises(TruncatedError if length < OVERHEAD else CorruptFileError, match="truncated"):
            unpack(data[:length])


def test_every_flipped_bit_is_refused() -> None:
    data = pack(HEADER, PAYLOAD)
    for position in range(8 * len(data)):
        changed = bytearray(data)
        changed[position // 8] ^= 1 << position % 8
        kinds = [NotGlcError] * 3 + [NewerVersionError]
        expected = kinds[position // 8] if position // 8 < len(kinds) else CorruptFileError
        if position == 3 * 8:  # version 1 becomes version 0
            expected = CorruptFileError
        with pytest.raises(expected):
            unpack(bytes(changed))


def test_every_deleted_duplicated_or_appended_byte_is_refused() -> None:
    data = pack(HEADER, PAYLOAD)
    for i in range(len(data)):
        for changed in (data[:i] + data[i + 1 :], data[:i] + data[i : i + 1] + data[i:]):
            if changed == data:
                continue
            with pytest.raises(BitstreamError):
                unpack(changed)
    for more in (b"\0", b"\0\0\0\0", b"\xff", data):
        with pytest.raises(CorruptFileError):
            unpack(data + more)


@given(st.binary(max_size=60), st.booleans())
def test_arbitrary_bytes_unpack_or_raise_BitstreamError(data: bytes, begins_well: bool) -> None:
    try:
        header, payload = unpack(b"GLC\x01" + data if begins_well else data)
    except BitstreamError:
        return
    assert pack(header, payload) == b"GLC\x01" + data


def test_payload_ending_in_zero_is_refused() -> None:
    with pytest.raises(CorruptFileError, match="ends in a zero"):
        unpack(pack(HEADER, PAYLOAD + b"\0"))


def test_max_pixels_limits_the_image_size() -> None:
    data = pack(HEADER, PAYLOAD)
    pixels = HEADER.width * HEADER.height
    assert unpack(data, pixels)[0] == HEADER
    with pytest.raises(SizeLimitError, match=f"768 x 511 .* limit of {pixels - 1}"):
        unpack(data, pixels - 1)


def test_oversized_headers_are_refused_before_allocation() -> None:
    fits = Header(fingerprint=b"abcd", width=16384, height=16384, rate_index=0)
    assert unpack(pack(fits, b""))[0] == fits
    for width, height in ((16385, 16384), (MAX_SIDE, 4097), (MAX_SIDE, MAX_SIDE)):
        assert width * height > DEFAULT_LIMIT
        data = pack(Header(fingerprint=b"abcd", width=width, height=height, rate_index=0), PAYLOAD)
        tracemalloc.start()
        try:
            with pytest.raises(SizeLimitError, match=f"{width} x {height}"):
                unpack(data)
            assert tracemalloc.get_traced_memory()[1] < 1 << 16
        finally:
            tracemalloc.stop()


def test_corrupt_size_raises_DamagedError() -> None:
    data = bytearray(pack(HEADER, PAYLOAD))
    data[8:12] = b"\xff" * 4
    with pytest.raises(CorruptFileError):
        unpack(bytes(data))


def test_random_bursts_are_refused() -> None:
    data = np.frombuffer(pack(HEADER, PAYLOAD), np.uint8)
    rng = np.random.default_rng(0)
    for _ in range(2000):
        changed = data.copy()
        start, length = rng.integers(4, len(data)), rng.integers(1, 6)
        changed[start : start + length] = rng.integers(0, 256, len(changed[start : start + length]))
        if (changed != data).any():
            with pytest.raises(BitstreamError):
                unpack(changed.tobytes())


def test_the_changelog_names_the_version() -> None:
    text = (Path(__file__).parents[2] / "CHANGELOG.md").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if re.match(r"\W*Bitstream", line)]
    assert any(re.search(rf"\bversion {VERSION}\b", line, re.IGNORECASE) for line in lines), lines
