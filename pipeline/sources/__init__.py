"""Lists the candidate images of a source, and plans them as a manifest of shards.

In: the url of a folder, glob, list, table or archive.
Out: a manifest of shards, and the bytes of its images.
May import: storage and below.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
