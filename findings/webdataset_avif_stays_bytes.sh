#!/bin/sh
# webdataset 1.0.2 with Pillow 13.0.0: decode("pil") leaves AVIF images, and those of Pillow's plugins, as bytes.
#
# Expected: each member that Pillow opens becomes an image, or an error says that it does not.
#
# Observed: a fixed list of suffixes decides. `avif` is not in it although this Pillow decodes AVIF, nor are suffixes that plugins register
# (`heic`, `jxl`, ...). Those members stay bytes, silently; a collate function then fails far away, or bytes are trained on.
#
#   {'jpg': 'Image', 'avif': 'bytes'}
#
# Workaround: decode(webdataset.imagehandler("pil", extensions=[...])).
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check webdataset==1.0.2 pillow==13.0.0 numpy
cd "$folder"
env/bin/python - <<'PY'
import io
import tarfile

import webdataset
from PIL import Image

with tarfile.open("a.tar", "w") as tar:
    for name, form in (("0.jpg", "JPEG"), ("0.avif", "AVIF")):
        written = io.BytesIO()
        Image.new("RGB", (16, 16)).save(written, form)
        member = tarfile.TarInfo(name)
        member.size = len(written.getvalue())
        tar.addfile(member, io.BytesIO(written.getvalue()))


def kinds(decoder):
    (sample,) = webdataset.WebDataset("a.tar", shardshuffle=False).decode(decoder)
    return {key: type(sample[key]).__name__ for key in ("jpg", "avif")}


found = kinds("pil")
print(found)
assert found == {"jpg": "Image", "avif": "bytes"}, "the behaviour has changed"
assert kinds(webdataset.imagehandler("pil", extensions=["jpg", "avif"])) == {"jpg": "Image", "avif": "Image"}
PY
