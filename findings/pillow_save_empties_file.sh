#!/bin/sh
# Pillow 13.0.0: Image.save empties an existing file before it looks at the image; if saving fails, both versions are lost.
#
# Expected: an error that is known before the first byte is written (a mode that the format cannot hold, an option out of range) leaves an
# existing file as it was. Pillow does remove a file that it created itself.
#
# Observed: the file is opened with "w+b" before the plugin is called, and stays, with 0 bytes.
#
#   OSError: cannot write mode F as PNG; photo.png: 69 bytes before, 0 bytes after
#
# Affected: every plugin, also those whose options can only fail after encoding (a target size out of reach).
# Workaround: save to io.BytesIO, or to another name that replaces the file.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check pillow==13.0.0
cd "$folder"
env/bin/python - <<'PY'
import os

from PIL import Image

Image.new("RGB", (4, 4)).save("photo.png")
before = os.path.getsize("photo.png")
try:
    Image.new("F", (4, 4)).save("photo.png")
except OSError as error:
    print(f"OSError: {error}; photo.png: {before} bytes before, {os.path.getsize('photo.png')} bytes after")
assert before > 0
assert os.path.getsize("photo.png") == 0, "the behaviour has changed"
PY
