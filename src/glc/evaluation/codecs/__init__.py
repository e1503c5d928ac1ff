"""Codecs behind one interface: picture to bytes, bytes to picture."""
