"""Turns the bytes of a file into the network's input, in one call."""

from __future__ import annotations

from pipeline.images.decoding import Floats32, decode
from pipeline.images.resize import prepare
from pipeline.spec import Preprocess


def load(data: bytes, rule: Preprocess) -> Floats32:
    """Decodes an image and prepares it for the network; see `decode` and `prepare`.

    Returns:
        The network's input, float32 (rule.height, rule.width, 3), normalised.

    Raises:
        BadImage: If the image cannot be decoded through its own fault.
    """
    return prepare(decode(data, rule), rule)
