"""File names that are not UTF-8 in files and on the terminal."""

import json
import os
import subprocess
import sys
from pathlib import Path

from glc.io.atomic import write_text
from glc.io.names import decode_names, encode_text

LATIN1 = os.fsdecode(b"caf\xe9/\xff")


def test_names_survive_json_and_other_files(tmp_path: Path) -> None:
    assert encode_text(f"ä {LATIN1}") == b"\xc3\xa4 caf\\udce9/\\udcff"
    for name in (LATIN1, "ä\\udc", "plain"):
        assert decode_names(encode_text(name).decode()) == name
    write_text(tmp_path / "a.json", json.dumps({"name": LATIN1}, ensure_ascii=False))
    assert json.loads((tmp_path / "a.json").read_text("utf-8")) == {"name": LATIN1}


def test_the_terminal_shows_them() -> None:
    code = (
        "import os; from glc.io.names import escape_output; escape_output(); print(os.fsdecode(b'caf\\xe9'))"
    )
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment, check=True)
    assert run.stdout == b"caf\\udce9\n"
