"""An extension package for glc: see docs/extending.md."""
