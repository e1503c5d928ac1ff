#!/bin/sh
# Creates .venv in this checkout with exactly the packages of requirements/dev.txt. `make setup` calls it.
#
# The file .venv/.glc-setup has a fingerprint of the requirements and is written last: an interrupted run is
# repeated, and an unchanged environment is not touched. The fingerprint includes the checkout's path, because
# the editable install points there: a moved checkout is set up again.
#
#   PYTHON   interpreter to create the environment with (default: the first of python3, python3.13 .. python3.11)
set -eu
cd "$(dirname "$0")/.."

venv=.venv
stamp=$venv/.glc-setup
fits='import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))'
version='import sys; print("%d.%d" % sys.version_info[:2])'

say() { printf '%s\n' "setup: $*"; }
fail() { printf '%s\n' "setup: $*" >&2; exit 1; }
# A name on PATH may be the launcher of a disabled version (version managers): run it to find out.
usable() { "$1" -c "$fits" >/dev/null 2>&1; }

fingerprint() {
    pwd
    "$venv/bin/python" -c "$version"
    cat pyproject.toml requirements/uv.txt requirements/dev.txt scripts/setup.sh | cksum
}

find_python() {
    if [ -n "${PYTHON:-}" ]; then
        usable "$PYTHON" || fail "PYTHON=$PYTHON is not a working Python 3.11 to 3.13"
        printf '%s\n' "$PYTHON"
        return
    fi
    for name in python3 python3.13 python3.12 python3.11 python; do
        if usable "$name"; then
            printf '%s\n' "$name"
            return
        fi
    done
    fail "no Python 3.11, 3.12 or 3.13 found; install one, or name it: make setup PYTHON=/path/to/python3.12"
}

# Keep an existing environment unless it is broken or PYTHON is another version.
keep_venv() {
    usable "$venv/bin/python" && "$venv/bin/python" -m pip --version >/dev/null 2>&1 || return 1
    [ -z "${PYTHON:-}" ] || [ "$("$PYTHON" -c "$version" 2>/dev/null)" = "$("$venv/bin/python" -c "$version")" ]
}

if keep_venv; then
    if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$(fingerprint)" ]; then
        exit 0
    fi
else
    python=$(find_python)
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
        fail "$python cannot create environments; install its venv package (Debian, Ubuntu: apt install python3-venv)"
    say "creating $venv with $("$python" --version)"
    "$python" -m venv --clear "$venv"
fi

rm -f "$stamp"
say "installing requirements/dev.txt (the first run downloads several gigabytes)"
# uv is about four times as fast as pip; if it is not available or fails, pip installs the same locked files.
if "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/uv.txt &&
    "$venv/bin/python" -m uv pip sync --compile-bytecode --python "$venv/bin/python" --require-hashes requirements/dev.txt; then
    :
else
    say "uv did not work here; installing with pip"
    "$venv/bin/python" -m pip install --disable-pip-version-check --require-hashes -r requirements/dev.txt
fi
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
# Else the first `glc train --help` of each module compiles it. (pip compiles what it installs itself.)
"$venv/bin/python" -m compileall -q src || say "some modules were not compiled"
fingerprint >"$stamp.new"
mv "$stamp.new" "$stamp"
say "done; the environment is $venv"
