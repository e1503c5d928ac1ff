"""Evaluate codecs: `python -m src.evaluate codec=small ...`; `glc eval` does the same from anywhere."""

import sys

from glc.io import threads_policy

threads_policy.choose(sys.argv[1:])  # before torch is loaded

from glc.launch.evaluate import main  # noqa: E402

if __name__ == "__main__":
    main()
