"""How fast and how frugal everything is: `python -m benchmarks`; docs/performance.md explains the figures."""
