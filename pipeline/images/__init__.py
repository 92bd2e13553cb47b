"""Bytes of an image file become pixels, or a failure with its reason.

In: the bytes of an image file.
Out: an array of pixels, resized and normalised; or BadImage.
May import: storage and below.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
