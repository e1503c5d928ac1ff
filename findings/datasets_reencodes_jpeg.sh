#!/bin/sh
# datasets 5.2.0 with Pillow 13.0.0: an image that was opened from bytes is stored as a new, lossy file.
#
# Expected: `Dataset.from_dict({"image": [Image.open(io.BytesIO(jpeg))]})` stores the file's bytes, or the pixels without loss (PNG, as for arrays).
#
# Observed: the image is saved again in its own format with Pillow's default options: a JPEG of quality 100 becomes one of quality 75 with
# subsampled chroma, without a warning. It holds for each lossy format that Pillow opens and saves, also those of plugins. The same file as
# {"bytes": ..., "path": None} is stored as it is, until a `map` returns the image.
#
#   from bytes by Image.open: 1104 bytes -> 1135 bytes, largest difference 129 levels
#   {"bytes": ...}:           1104 bytes -> 1104 bytes, largest difference 0 levels
#   the same after map:       1104 bytes -> 1135 bytes, largest difference 129 levels
#
# Affected: training sets made from images in memory (shards, downloads); measurements on them.
# Workaround: give paths or bytes, not open images; cast_column("image", Image(decode=False)) before `map`.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check datasets==5.2.0 pillow==13.0.0 numpy
HF_HUB_OFFLINE=1 "$folder/env/bin/python" - <<'PY'
import io

import datasets
import numpy as np
from PIL import Image

blocks = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
written = io.BytesIO()
Image.fromarray(np.kron(blocks, np.ones((8, 8, 1), np.uint8))).save(written, "JPEG", quality=100, subsampling=0)
jpeg = written.getvalue()
features = datasets.Features({"image": datasets.Image()})


def stored(value):
    rows = datasets.Dataset.from_dict({"image": [value]}, features=features)
    return contents(rows)


def contents(rows):
    return rows.cast_column("image", datasets.Image(decode=False))[0]["image"]["bytes"]


def pixels(data):
    return np.asarray(Image.open(io.BytesIO(data))).astype(int)


differences = []
for name, value in (("Image.open of bytes", Image.open(io.BytesIO(jpeg))), ("bytes", {"bytes": jpeg, "path": None})):
    data = stored(value)
    differences.append(abs(pixels(data) - pixels(jpeg)).max())
    print(f"{name}: {len(jpeg)} bytes -> {len(data)} bytes, largest difference {differences[-1]} levels")
assert differences[0] > 50, "the behaviour has changed"
assert differences[1] == 0
rows = datasets.Dataset.from_dict({"image": [{"bytes": jpeg, "path": None}]}, features=features)
data = contents(rows.map(lambda row: {"image": row["image"]}))
print(f"bytes, after map: {len(jpeg)} bytes -> {len(data)} bytes, largest difference {abs(pixels(data) - pixels(jpeg)).max()} levels")
assert abs(pixels(data) - pixels(jpeg)).max() > 50
PY
