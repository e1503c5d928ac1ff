#!/bin/sh
# pillow-jxl-plugin 1.3.8 (Pillow 12.0.0): quality=100 is not the best quality, it is an error.
#
# Expected: as in cjxl, where -q 100 means lossless, `image.save(..., quality=100)` is lossless, or lossy at a tiny distance.
#
# Observed: RuntimeError "The encoder API is used in an incorrect way", for every image, while 99 works and `lossless=True` is exact.
#
#   quality=99     saved
#   quality=100    RuntimeError: The encoder API is used in an incorrect way
#   lossless=True  saved, exact
#
# Affected: quality ladders and searches over 0..100 that work with Pillow's own JPEG, WebP and AVIF.
# Workaround: stop at 99, and ask for lossless=True above.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check pillow-jxl-plugin==1.3.8 pillow==12.0.0 numpy==2.3.5
"$folder/env/bin/python" - <<'PY'
import io

import numpy as np
import pillow_jxl  # noqa: F401
from PIL import Image

image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))


def save(**options):
    file = io.BytesIO()
    try:
        image.save(file, format="JXL", **options)
    except RuntimeError as error:
        return f"RuntimeError: {error}"
    exact = np.array_equal(np.asarray(Image.open(file)), np.asarray(image))
    return "saved, exact" if exact else "saved"


seen = {name: save(**options) for name, options in (
    ("quality=99", {"quality": 99}), ("quality=100", {"quality": 100}), ("lossless=True", {"lossless": True}))}
for name, result in seen.items():
    print(f"{name:13}  {result}")
assert seen["quality=99"] == "saved" and seen["lossless=True"] == "saved, exact"
assert seen["quality=100"].startswith("RuntimeError"), "the behaviour has changed"
PY
