"""Codecs with one interface: image to bytes, bytes to image."""
