"""Visual DNA of image datasets, at any size.

    >>> from pipeline import Catalogue, emd, make_dna            # doctest: +SKIP
    >>> emd(make_dna("photos/"), Catalogue("dnas").load("cityscapes"))

Names are imported when they are first used, so that a command that needs few starts at once.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
