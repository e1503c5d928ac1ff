"""Codecs behind one interface: image to bytes, bytes to image."""
