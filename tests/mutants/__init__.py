"""Changes the code that keeps the promises, one small fault at a time, and runs its tests.

    python -m tests.mutants                      # all mutants, for hours
    python -m tests.mutants --modules errors.py  # those of some modules
    python -m tests.mutants --seconds 240        # a sample of the modules that were run in full

`docs/mutants.md` says which modules were run in full, and why each survivor is harmless.
"""
