"""Distances: of two DNAs, and of all pairs of a catalogue, with their statistics.

In: DNAs, or names of datasets in a catalogue.
Out: numbers, and matrices.
May import: building and below.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
