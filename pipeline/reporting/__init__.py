"""What is said of results, and how it looks in a terminal, a figure or a page.

In: matrices, explanations and rankings.
Out: text, pictures and HTML files.
May import: explaining and below.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
