#!/bin/sh
# safetensors 0.8.0 (numpy 2.3.5): save_file replaces the file instead of writing into it.
#
# Expected: like open(path, "wb"): a new file gets the permissions of the umask, an existing one keeps its own, and a symbolic link is written
# through.
#
# Observed: a new file is readable by its owner only (0600) under umask 022; an existing file of mode 0644 becomes 0600; a link is replaced by a
# regular file, and its target keeps the old tensors. `open(path, "wb").write(save(...))` does what is expected.
#
#   new file                 0600   (write(save(...)): 0644)
#   existing file of 0644    0600
#   through a link           the link is gone, the target is unchanged
#
# Affected: shared folders where others can no longer read new weights; caches and "latest" links that point into a store of blobs.
# Workaround: write to a temporary name, set its mode, resolve links, rename.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check safetensors==0.8.0 numpy==2.3.5
cd "$folder"
"$folder/env/bin/python" - <<'PY'
import os
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save, save_file

os.umask(0o022)
old, new = {"a": np.zeros(3)}, {"a": np.ones(3)}


def mode(path):
    return f"{os.stat(path).st_mode & 0o777:04o}"


save_file(old, "fresh")
Path("plain").write_bytes(save(old))
Path("shared").write_bytes(save(old))
save_file(new, "shared")
Path("blob").write_bytes(save(old))
Path("link").symlink_to("blob")
save_file(new, "link")
print(f"new file                 {mode('fresh')}   (write(save(...)): {mode('plain')})")
print(f"existing file of 0644    {mode('shared')}")
through = Path("link").is_symlink() or (load_file("blob")["a"] == 1).all()
print("through a link           " + ("written" if through else "the link is gone, the target is unchanged"))
assert (mode("fresh"), mode("plain"), mode("shared"), through) == ("0600", "0644", "0600", False), "the behaviour has changed"
PY
