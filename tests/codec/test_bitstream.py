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
DATA = pack(HEADER, PAYLOAD)
ANY_SIZE = MAX_SIDE * MAX_SIDE


def with_checksum(body: bytes) -> bytes:
    """Append the checksum of the body."""
    return body + struct.pack("<I", zlib.crc32(body))


def header_of(width: int, height: int, rate_index: int = 0) -> Header:
    return Header(fingerprint=b"\xff\0\xff\0", width=width, height=height, rate_index=rate_index)


sides = st.sampled_from([1, 2, 256, 65535, 65536]) | st.integers(1, MAX_SIDE)
headers = st.builds(
    Header,
    fingerprint=st.binary(min_size=4, max_size=4),
    width=sides,
    height=sides,
    rate_index=st.sampled_from([0, 1, RATE_ONE, 2**16 - 1]) | st.integers(0, 2**16 - 1),
)
payloads = st.binary(max_size=200).map(lambda data: data.rstrip(b"\0"))


@given(headers, payloads)
def test_pack_unpack_round_trip(header: Header, payload: bytes) -> None:
    data = pack(header, payload)
    assert unpack(data, ANY_SIZE) == (header, payload)
    assert len(data) - len(payload) == OVERHEAD == 18


@pytest.mark.parametrize("side", [1, MAX_SIDE])
def test_fields_hold_their_extremes(side: int) -> None:
    header = header_of(side, side, 0 if side == 1 else 2**16 - 1)
    assert unpack(pack(header, b""), ANY_SIZE) == (header, b"")


def test_layout_matches_the_documentation() -> None:
    expected = (
        b"GLC" + bytes([1]) + b"\x01\x80\xff\x00" + bytes([0xFF, 0x02, 0xFE, 0x01, 0x07, 0x10]) + PAYLOAD
    )
    assert with_checksum(expected) == DATA


@pytest.mark.parametrize(("width", "height"), [(0, 5), (5, 0), (MAX_SIDE + 1, 1), (1, MAX_SIDE + 1), (-1, 1)])
def test_invalid_sizes_are_refused_by_pack(width: int, height: int) -> None:
    with pytest.raises(SizeLimitError, match=f"{width} x {height}"):
        pack(header_of(width, height), b"")


@pytest.mark.parametrize("kind", [bytearray, memoryview])
def test_bytearray_and_memoryview_are_accepted(kind: type) -> None:
    assert unpack(kind(DATA)) == (HEADER, PAYLOAD)


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (b"", NotGlcError, "empty"),
        (b"\x89PNG\r\n\x1a\n" + bytes(50), NotGlcError, "does not start with GLC"),
        (b"glc\x01" + bytes(50), NotGlcError, "does not start with GLC"),
        (b"GL ", NotGlcError, "does not start with GLC"),
        (b"X", NotGlcError, "does not start with GLC"),
        (bytes(99), NotGlcError, "does not start with GLC"),
        (with_checksum(b"GLC\0" + DATA[4:-4]), CorruptFileError, "version 0 does not exist"),
        (pack(HEADER, PAYLOAD + b"\0"), CorruptFileError, "ends in a zero"),
        (DATA[:8] + b"\xff" * 4 + DATA[12:], CorruptFileError, "checksum"),
    ],
)
def test_other_files_are_refused(data: bytes, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        unpack(data)


@pytest.mark.parametrize("version", [VERSION + 1, 77, 255])
def test_newer_versions_raise_NewerVersionError(version: int) -> None:
    body = b"GLC" + bytes([version])
    for data in (body, body + b"?", body + DATA[4:], with_checksum(body + bytes(100))):
        with pytest.raises(NewerVersionError, match=rf"version {version}; .* version {VERSION}: update"):
            unpack(data)


def test_every_prefix_is_refused() -> None:
    for length in range(1, len(DATA)):
        with pytest.raises(TruncatedError if length < OVERHEAD else CorruptFileError, match="truncated"):
            unpack(DATA[:length])


def test_every_flipped_bit_is_refused() -> None:
    for position in range(8 * len(DATA)):
        changed = bytearray(DATA)
        changed[position // 8] ^= 1 << position % 8
        kinds = [NotGlcError] * 3 + [NewerVersionError]
        expected = kinds[position // 8] if position // 8 < len(kinds) else CorruptFileError
        if position == 3 * 8:  # version 1 becomes version 0
            expected = CorruptFileError
        with pytest.raises(expected):
            unpack(bytes(changed))


def test_every_deleted_duplicated_or_appended_byte_is_refused() -> None:
    for i in range(len(DATA)):
        for changed in (DATA[:i] + DATA[i + 1 :], DATA[:i] + DATA[i : i + 1] + DATA[i:]):
            with pytest.raises(BitstreamError):
                unpack(changed)
    for more in (*(bytes([value]) for value in range(256)), bytes(4), DATA):
        with pytest.raises(CorruptFileError):
            unpack(DATA + more)


@given(st.binary(max_size=60), st.booleans())
def test_arbitrary_bytes_unpack_or_raise_BitstreamError(data: bytes, begins_well: bool) -> None:
    try:
        header, payload = unpack(b"GLC\x01" + data if begins_well else data)
    except BitstreamError:
        return
    assert pack(header, payload) == b"GLC\x01" + data


def test_max_pixels_limits_the_image_size() -> None:
    pixels = HEADER.width * HEADER.height
    assert unpack(DATA, pixels)[0] == HEADER
    with pytest.raises(SizeLimitError, match=f"768 x 511 .* limit of {pixels - 1}"):
        unpack(DATA, pixels - 1)


def test_oversized_headers_are_refused_before_allocation() -> None:
    fits = header_of(16384, 16384)
    assert unpack(pack(fits, b""))[0] == fits
    for width, height in ((16385, 16384), (MAX_SIDE, 4097), (MAX_SIDE, MAX_SIDE)):
        assert width * height > DEFAULT_LIMIT
        data = pack(header_of(width, height), PAYLOAD)
        tracemalloc.start()
        try:
            with pytest.raises(SizeLimitError, match=f"{width} x {height}"):
                unpack(data)
            assert tracemalloc.get_traced_memory()[1] < 1 << 16
        finally:
            tracemalloc.stop()


def test_random_bursts_are_refused() -> None:
    data = np.frombuffer(DATA, np.uint8)
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
