"""The values: a DNA, its ranges, partial sums, exemplars, image hashes and lenses, and their files.

In: arrays of counts and sums, or bytes of a Parquet file.
Out: immutable values that add up, or bytes of a Parquet file.
May import: errors, spec, buffers.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
