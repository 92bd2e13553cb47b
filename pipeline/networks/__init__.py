"""A name becomes a network, with its layers, weights and ranges.

In: the name of a network, urls of weights and ranges.
Out: a description of the network, the loaded model, and ranges.
May import: storage and below.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
