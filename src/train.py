"""Train a stage: `python -m src.train stage=vqvae ...`; `glc train` does the same from anywhere."""

import sys

from glc.io import threads_policy

threads_policy.choose(sys.argv[1:])  # before torch is loaded

from glc.launch.train import main  # noqa: E402

if __name__ == "__main__":
    main()
