"""Pixels become activations, activations become counts, and counts add up.

In: a shard of a manifest, a network and ranges.
Out: a committed partial; the sum of many partials.
May import: sources, images, networks and below.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
