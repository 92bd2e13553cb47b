"""Visual DNA of image datasets, at any size.

    >>> from pipeline import Catalogue, emd, make_dna            # doctest: +SKIP
    >>> emd(make_dna("photos/"), Catalogue("dnas").load("cityscapes"))

Names are imported when they are first used, so that a command that needs few starts at once.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.build import InProcess, Request, Result, build_datasets, make_dna
    from pipeline.catalogue import Catalogue
    from pipeline.distance import emd, fd, nfd
    from pipeline.dna import DNA, Ranges
    from pipeline.errors import VdnaError
    from pipeline.lens import Lens
    from pipeline.matrix import Matrix, compare
    from pipeline.pairwise import pairwise_emd
    from pipeline.partial import Failure, Partial
    from pipeline.spec import Preprocess, Resources, Spec, Tap

_HOME = {
    "Catalogue": "catalogue",
    "DNA": "dna",
    "Failure": "partial",
    "InProcess": "build",
    "Lens": "lens",
    "Matrix": "matrix",
    "Partial": "partial",
    "Preprocess": "spec",
    "Ranges": "dna",
    "Request": "build",
    "Resources": "spec",
    "Result": "build",
    "Spec": "spec",
    "Tap": "spec",
    "VdnaError": "errors",
    "build_datasets": "build",
    "compare": "matrix",
    "emd": "distance",
    "fd": "distance",
    "make_dna": "build",
    "nfd": "distance",
    "pairwise_emd": "pairwise",
}

__all__ = [
    "DNA",
    "Catalogue",
    "Failure",
    "InProcess",
    "Lens",
    "Matrix",
    "Partial",
    "Preprocess",
    "Ranges",
    "Request",
    "Resources",
    "Result",
    "Spec",
    "Tap",
    "VdnaError",
    "build_datasets",
    "compare",
    "emd",
    "fd",
    "make_dna",
    "nfd",
    "pairwise_emd",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'pipeline' has no attribute {name!r}")
    value = getattr(import_module(f"pipeline.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
