"""Entry points that compose the configuration in `conf/` and run it: `python -m src.train`."""
