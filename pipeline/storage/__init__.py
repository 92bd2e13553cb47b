"""Every read and write of a url: local files, S3, the web, and what else fsspec knows.

In: urls and bytes.
Out: bytes, listings, and whether an object was created.
May import: dna and below.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
