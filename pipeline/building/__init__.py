"""A request becomes a committed DNA: plan, count, reduce, commit.

In: requests, a catalogue and an engine.
Out: committed versions, or a DNA in memory.
May import: catalogue and below.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
