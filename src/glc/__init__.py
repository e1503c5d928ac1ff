"""Generative Latent Coding: an image codec that transform-codes the latent of a generative VQ-VAE.

The library needs torch and an entropy coder only; training lives in `glc.training`, which nothing
else here imports.
"""

__version__ = "0.1.0"
