"""Evaluate codecs: `python -m src.evaluate codec=small ...`; `glc eval` does the same from anywhere."""

from glc.launch.evaluate import main

if __name__ == "__main__":
    main()
