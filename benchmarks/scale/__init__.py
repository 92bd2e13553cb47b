"""A model of whole builds, from measured parts: `python -m benchmarks.scale`."""
