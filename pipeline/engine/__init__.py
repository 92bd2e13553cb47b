"""Where work runs: in this process, or on Ray; and commands that a cluster runs as jobs.

In: shards to count, functions to map over items, or commands.
Out: receipts and results, as they end; jobs.
May import: counting and below.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
