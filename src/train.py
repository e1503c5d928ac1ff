"""Train a stage: `python -m src.train stage=vqvae ...`; `glc train` does the same from anywhere."""

from glc.launch.commands import train

if __name__ == "__main__":
    train()
