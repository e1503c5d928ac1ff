"""Train a stage: `python -m src.train stage=vqvae ...`; `glc train` does the same from anywhere."""

from glc.launch.train import main

if __name__ == "__main__":
    main()
