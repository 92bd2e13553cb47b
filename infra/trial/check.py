"""Checks that builds counted the same pictures exactly alike: `check.py 4000 calm killed`.

Exits 1, and says what differs, if one of them counted other pictures, or if a number is another.
"""

from __future__ import annotations

import os
import sys

from pipeline.catalogue import Catalogue


def differences(place: str, count: int, names: list[str]) -> list[str]:
    """Returns what is wrong, in words; nothing if every dataset has the counts of the first."""
    catalogue = Catalogue(place)
    first = catalogue.load(names[0])
    found = []
    for name in names:
        dna = catalogue.load(name)
        if dna.images != count:
            found.append(f"{name} counted {dna.images} of {count} pictures")
        if not dna.identical(first):
            found.append(f"{name} has other counts than {names[0]}")
    return found


if __name__ == "__main__":
    wrong = differences(os.environ["VDNA_CATALOGUE"], int(sys.argv[1]), sys.argv[2:])
    print("\n".join(wrong) or f"{' and '.join(sys.argv[2:])} have the same counts")
    sys.exit(bool(wrong))
