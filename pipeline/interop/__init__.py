"""Files of the reference package, vdna 0.1.1, in both directions; logs of runs; lake tables.

In: its .npz and .json files, or a DNA of a catalogue; a result to log.
Out: a DNA in a catalogue, or such files; entries of a run; Delta and Iceberg tables.
May import: explaining and below.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
