"""A file of datasets that are kept up to date, and the gate that judges them.

In: datasets.yaml.
Out: built datasets, their matrices, and a verdict on each bound.
May import: explaining and below.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
