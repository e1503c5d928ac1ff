"""Evaluate codecs: `python -m src.evaluate codec=small ...`; `glc eval` does the same from anywhere."""

from glc.launch.commands import evaluate

if __name__ == "__main__":
    evaluate()
