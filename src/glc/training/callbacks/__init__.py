"""Callbacks of the training stages."""
