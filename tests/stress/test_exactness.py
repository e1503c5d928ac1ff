"""Files decode to the encoded integers under every setting, on every device, in every environment.

Settings: {1, 2 threads} x {oneDNN on, off} on the CPU, {TF32 on, off} on a GPU, x {contiguous, channels-last
weights} x {alone, in a batch of 3}; and on the CPU {all, only the basic vector instructions}. Every setting
encodes, and every setting decodes all files. `--stress output=DIR` keeps the files; `--stress files=DIR` also
decodes those of another machine, version of torch or device.
"""

import json

import glc
from tests.programs import fresh
from tests.stress.harness import Stress
from tests.stress.symbols import PLAIN, differences, images_of, write_files


def test_all_settings_decode_the_same_integers(stress: Stress) -> None:
    assert stress.output is not None
    codec = glc.load(stress.weights, stress.device)
    count = stress.count(2, 6)
    here, plain = stress.output / "encoded", stress.output / "encoded_plain"
    write_files(codec, images_of(stress.images, count), here)
    folders = [here] if stress.files is None else [here, stress.files]
    if codec.device.type == "cpu":
        words = [stress.weights, stress.images or "", count, plain, *folders]
        done = fresh(["-m", "tests.stress.symbols", *words], environment=PLAIN)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout.splitlines()[-1]) == []
        folders.append(plain)
    assert differences(codec, folders) == []
