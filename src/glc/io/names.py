r"""File names in text: one way of writing names that are not UTF-8.

In Python such a name has a lone surrogate for each byte that is not UTF-8 (PEP 383). Every writer of the
package writes it as its escape, `\udce9` for the byte E9: files stay valid UTF-8, JSON readers restore the
name, and `decode_names` does in other files.
"""

import re
import sys
from contextlib import suppress


def encode_text(text: str) -> bytes:
    """Encode text with file names in it as UTF-8; all text files are written in this way."""
    return text.encode("utf-8", "backslashreplace")


def decode_names(text: str) -> str:
    """Restore file names that `encode_text` has escaped, in text that is not JSON."""
    return re.sub(r"\\u(dc[89a-f][0-9a-f])", lambda found: chr(int(found[1], 16)), text)


def escape_output() -> None:
    """Let standard output and error escape names too, instead of ending with a codec error."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            with suppress(OSError):  # a terminal opened by its name seems seekable and is not
                stream.reconfigure(errors="backslashreplace")
