#!/bin/sh
# braceexpand 0.1.7, as used by WebDataset for shard patterns: backslashes disappear, so Windows paths name other files.
#
# Expected: `braceexpand(r"data\train-{000..002}.tar")` expands the braces and leaves the rest of the name as it is, and a path without braces comes
# back unchanged.
#
# Observed: a backslash is an escape character by default, also where no brace follows, and is removed. With escape=False the path survives.
#
#   data\train-000.tar        -> datatrain-000.tar
#   data\train-{000..001}.tar -> datatrain-000.tar datatrain-001.tar
#   the same, escape=False    -> data\train-000.tar data\train-001.tar
#
# Affected: training on Windows with shards named by str(Path(...)): "file not found" for a name that nobody typed.
# Workaround: forward slashes, or braceexpand(pattern, escape=False) where the separator is a backslash.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check braceexpand==0.1.7
"$folder/env/bin/python" - <<'PY'
from braceexpand import braceexpand

plain, pattern = r"data\train-000.tar", r"data\train-{000..001}.tar"
seen = [list(braceexpand(plain)), list(braceexpand(pattern)), list(braceexpand(pattern, escape=False))]
for name, result in zip((plain, pattern, "the same, escape=False"), seen):
    print(f"{name:25} -> {' '.join(result)}")
assert seen[0] == ["datatrain-000.tar"], "the behaviour has changed"
assert seen[1] == ["datatrain-000.tar", "datatrain-001.tar"]
assert seen[2] == [r"data\train-000.tar", r"data\train-001.tar"]
PY
