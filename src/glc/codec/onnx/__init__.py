"""The codec without PyTorch: ONNX Runtime for E, g_a, g_s and D, NumPy for the integer networks.

Modules here and those that they import must not import torch, except `export`.
"""
