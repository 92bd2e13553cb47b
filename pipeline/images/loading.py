"""images.loading: TODO-DOC"""

from __future__ import annotations

from pipeline.images.decoding import Floats32, decode
from pipeline.images.resize import prepare
from pipeline.spec import Preprocess


def load(data: bytes, rule: Preprocess) -> Floats32:
    """`prepare` of `decode`."""
    return prepare(decode(data, rule), rule)
