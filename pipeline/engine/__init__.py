"""Where work runs: in this process, or on Ray.

In: shards to count, or functions to map over items.
Out: receipts and results, as they end.
May import: counting and below.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
