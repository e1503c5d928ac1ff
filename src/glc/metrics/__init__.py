"""Metrics of reconstructed pictures and of their files."""

from glc.metrics.quality import MSSSIM, PSNR, NotMeasurable, QualityMetrics, bits_per_pixel

__all__ = ["MSSSIM", "PSNR", "NotMeasurable", "QualityMetrics", "bits_per_pixel"]
