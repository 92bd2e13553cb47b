"""The commit log over DNAs: versions, history, verification, and garbage collection.

In: the url of a catalogue.
Out: commits, DNAs and findings.
May import: engine and below.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
