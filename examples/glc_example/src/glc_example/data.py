"""A data set of generated images."""

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset


class Waves(Dataset[Tensor]):
    """Plane waves of random colours and directions: float `[3, side, side]` in [-1, 1], reproducible."""

    def __init__(self, count: int, side: int, seed: int) -> None:
        self.count, self.side, self.seed = count, side, seed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + index)
        across, down, phase = torch.rand(3, 3, 1, 1, generator=generator) * 6
        position = torch.linspace(-1, 1, self.side)
        return torch.sin(across * position + down * position[:, None] + phase)


class WavesDataModule(L.LightningDataModule):
    """Loaders of wave images.

    Args:
        batch_size: images per batch and device.
        count: images per epoch.
        side: width and height in pixels, a multiple of the model's stride (64 or 128).
    """

    def __init__(self, batch_size: int = 8, count: int = 64, side: int = 64) -> None:
        super().__init__()
        self.batch_size, self.count, self.side = batch_size, count, side

    def train_dataloader(self) -> DataLoader[Tensor]:
        """Return the training images, shuffled."""
        return DataLoader(Waves(self.count, self.side, seed=0), self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader[Tensor]:
        """Return the validation images, in order."""
        return DataLoader(Waves(self.batch_size, self.side, seed=1), self.batch_size)
