"""Losses: modules that return named terms, one value per image `[B]` or one per batch."""
