#!/bin/sh
# constriction 0.5.0 (numpy 2.3.5): the same probabilities give another entropy model in float32 than in float64.
#
# Expected: `Categorical(p, perfect=False)` depends on the values in p only. Integer frequencies that sum to 2^24, divided by 2^24, are exact in
# both types, so files written with one should decode with the other.
#
# Observed: from some tens of symbols on, the two arrays (equal element by element) make different models. The compressed words differ, and
# decoding one with the other raises nothing: it returns wrong symbols.
#
#   symbols  same bytes  wrong symbols of 5000
#        20        True                      0
#       300       False                   4973
#
# Affected: everybody who keeps tables as float32 on one side (a PyTorch default) and float64 on the other.
# Workaround: one type everywhere, float64, and a checksum of the decoded symbols or of the file.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check constriction==0.5.0 numpy==2.3.5
"$folder/env/bin/python" - <<'PY'
import constriction
import numpy as np

rng = np.random.default_rng(0)
Categorical, AnsCoder = constriction.stream.model.Categorical, constriction.stream.stack.AnsCoder
print("symbols  same bytes  wrong symbols of 5000")
seen = {}
for size in (20, 300):
    frequencies = rng.integers(1, 1 << 14, size)
    frequencies[0] += (1 << 24) - frequencies.sum()
    symbols = rng.integers(0, size, 5000).astype(np.int32)
    single, double = ((frequencies / (1 << 24)).astype(kind) for kind in (np.float32, np.float64))
    assert (single == double).all() and double.sum() == 1
    written = []
    for p in (single, double):
        coder = AnsCoder()
        coder.encode_reverse(symbols, Categorical(p, perfect=False))
        written.append(coder.get_compressed())
    decoded = AnsCoder(written[1]).decode(Categorical(single, perfect=False), symbols.size)
    seen[size] = np.array_equal(*written), int((decoded != symbols).sum())
    print(f"{size:7}  {seen[size][0]!s:>10}  {seen[size][1]:21}")
assert seen[20] == (True, 0)
assert not seen[300][0] and seen[300][1] > 4000, "the behaviour has changed"
PY
