"""The limits of a plan's options, which `plan` checks too: each is declared and worded here only.

>>> LIMIT.require("limit", 0)
Traceback (most recent call last):
pipeline.errors.UsageError: limit is 0; it must be at least 1
"""

from __future__ import annotations

from pipeline.options import Option

LIMIT = Option("Take only this many images, the same ones in each run.", least=1)

SHARD_IMAGES = Option(
    "Number of images in each new shard (default: by the number of images, and at most what a "
    "worker counts in a minute; before a build has measured that, at most 537 MB of images).",
    least=1,
)

CELL_IMAGES = Option(
    "Number of images whose sums are kept apart in a new shard, so that a later change has few "
    "images counted again (default: 128; more where images are small for the "
    "network's sums).",
    least=1,
)
