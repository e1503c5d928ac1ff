"""Metrics of reconstructed images and of compressed files."""

from glc.metrics.distributions import CMMD, FID, KID, cut_patches, patch_count
from glc.metrics.quality import DISTS, MSSSIM, PSNR, NotMeasurable, QualityMetrics, bits_per_pixel

__all__ = [
    "CMMD",
    "DISTS",
    "FID",
    "KID",
    "MSSSIM",
    "PSNR",
    "NotMeasurable",
    "QualityMetrics",
    "bits_per_pixel",
    "cut_patches",
    "patch_count",
]
