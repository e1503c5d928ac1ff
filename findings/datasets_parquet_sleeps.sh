#!/bin/sh
# datasets 5.2.0 with pyarrow 26.0.1: a shuffled stream of a Parquet file ends with a pause of 5 seconds.
#
# Expected: a pass over twelve local rows takes milliseconds, and so does an iteration that stops after the first row.
#
# Observed: whenever an iterator over `load_dataset("parquet", ..., streaming=True).shuffle(...)` ends, is closed or is collected, the process sleeps
# for 5 seconds (`datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN`), to let the threads of Apache Arrow end (its issue 45214). No message is shown.
# The same stream without `shuffle`, and a JSON file with it, do not pause.
#
#   parquet: a pass takes 0.0 s; shuffled 5.0 s, its first row alone 5.0 s
#   json:    a pass takes 0.0 s; shuffled 0.0 s, its first row alone 0.0 s
#
# Affected: training on streamed Parquet files: each data worker pauses at the end of each pass and of each epoch.
# Workaround: long epochs; not streamed (memory-mapped) sets; the setting, where threads that outlive the interpreter do no harm.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check datasets==5.2.0 pyarrow==26.0.1
HF_HUB_OFFLINE=1 HF_HOME="$folder/home" "$folder/env/bin/python" - "$folder" <<'PY'
import sys
import time

import datasets

folder = sys.argv[1]
rows = datasets.Dataset.from_dict({"n": list(range(12))})
rows.to_parquet(f"{folder}/rows.parquet")
rows.to_json(f"{folder}/rows.json")


def seconds(stream, first_only=False):
    start = time.perf_counter()
    rows = iter(stream)
    next(rows)
    if not first_only:
        assert len(list(rows)) == 11
    del rows
    return time.perf_counter() - start


for kind in ("parquet", "json"):
    stream = datasets.load_dataset(kind, data_files=f"{folder}/rows.{kind}", split="train", streaming=True)
    shuffled = stream.shuffle(seed=0, buffer_size=4)
    plain, whole, first = seconds(stream), seconds(shuffled), seconds(shuffled, first_only=True)
    print(f"{kind}: a pass takes {plain:.1f} s; shuffled {whole:.1f} s, its first row alone {first:.1f} s", flush=True)
    assert plain < 2
    assert (min(whole, first) > 4.5) == (kind == "parquet"), "the behaviour has changed"
PY
