"""Why datasets differ: layers, neurons and images; lenses; rankings.

In: names of datasets in a catalogue.
Out: explanations, fitted lenses and rankings.
May import: comparing and below.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
