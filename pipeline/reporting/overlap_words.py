r"""Says which datasets have images in common.

>>> print(*overlap_lines(find_overlaps(catalogue)), sep="\n")        # doctest: +SKIP
31 of 1,204 images of test are in train, too (2.57%), and 31 of 9,800 of train in test (0.32%)
"""

from __future__ import annotations

from pipeline.comparing import Overlaps
from pipeline.spec import IMAGE_HASHES
from pipeline.wording import count_of, option, some_of

LISTED_OVERLAPS = 20


def overlap_lines(found: Overlaps) -> list[str]:
    """Says which datasets have images in common, the largest share first.

    Args:
        found: What was counted.

    Returns:
        A line for each two datasets, at most `LISTED_OVERLAPS`; what is not known comes last.
    """
    images = dict(zip(found.names, found.images.tolist(), strict=True))
    pairs = found.pairs()
    lines = []
    for a, b in pairs[:LISTED_OVERLAPS]:
        (of_a, share_a), (of_b, share_b) = found.of(a, b), found.of(b, a)
        lines.append(
            f"{of_a:,} of {count_of(images[a], 'image')} of {a} are in {b}, too ({share_a:.2%}), "
            f"and {of_b:,} of {images[b]:,} of {b} in {a} ({share_b:.2%})"
        )
    if left := len(pairs) - len(lines):
        lines.append(f"… and {count_of(left, 'more pair')} of datasets with images in common")
    if not pairs and len(found.names) > 1:
        two = len(found.names) == 2
        told = " have no image in common" if two else ": no image is in two of these datasets"
        lines.append(f"{some_of(found.names)}{told}")
    if found.unknown:
        lines.append(
            f"it is not known which images {some_of(found.unknown)} shares with others: build it "
            f"with {option(IMAGE_HASHES, True)}, which counts its images again"
        )
    return lines
