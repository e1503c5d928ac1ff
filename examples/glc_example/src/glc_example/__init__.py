"""Own parts for glc: see docs/extending.md."""
