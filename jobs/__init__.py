"""The commands. `vdna NAME` and `python -m jobs.NAME` are the same thing."""
