#!/bin/sh
# Pillow 13.0.0: `resize` of a box returns other pixels if the image has fewer rows far below the box.
#
# Expected: the result depends on the pixels within the filter's reach of the box.
#
# Observed: with rows 0 to 99 of 141 instead of all of them, 1493 of 4800 values differ, by up to 13 (box down to row 47, bicubic, which reaches row 49);
# with 120 rows none. The order of the horizontal and the vertical pass, each of which rounds and clips to 8 bits, follows from the image's size.
#
# Affected: loaders that decode only the part of an image around a crop: their crops are not those of the complete image.
# Workaround: pad the part to the complete image's size, `part.crop((0, 0, width, height))`, before `resize`.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check pillow==13.0.0 numpy
"$folder/env/bin/python" - <<'PY'
import numpy as np
from PIL import Image

image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (141, 75, 3)).astype(np.uint8))
box = (3.3, 10.2, 40.1, 47.0)


def difference(part):
    whole, other = (np.asarray(x.resize((40, 40), Image.Resampling.BICUBIC, box=box), int) for x in (image, part))
    return (whole != other).sum(), abs(whole - other).max()


for rows in (100, 120):
    part = image.crop((0, 0, 75, rows))
    print(f"{rows} rows: {difference(part)}, padded: {difference(part.crop((0, 0, 75, 141)))}")
if not difference(image.crop((0, 0, 75, 100)))[0]:
    raise SystemExit("the behaviour has changed")
PY
