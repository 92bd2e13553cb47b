"""What a commit states of an erasure. It has no name, nor a hash of one, which could be guessed.

>>> Receipt(2, "asked for by the person shown", "ada", {"photos": {"0a": "1b"}}).images
2
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import ConfigDict, Field


@dataclass(frozen=True)
class Receipt:
    """What an erasure has done. Its time is that of the commit.

    Attributes:
        images: How many images were erased; 0 if no list had them any more, and only what was left
            of them was removed.
        reason: Why, as the user gave it.
        by: Who erased them.
        recounted: For each dataset, the digest of each DNA that was replaced, with that of the DNA
            in its place.
        restated: For each dataset, the digests of the DNAs that stay as they are, whose lists of
            images were stored anew, because a file had shared them with an erased image.
        dropped: For each dataset, the digests of the DNAs that were removed with no other in their
            place.
    """

    images: Annotated[int, Field(strict=True, ge=0)]
    reason: str
    by: str
    recounted: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    restated: Mapping[str, Sequence[str]] = field(default_factory=dict)
    dropped: Mapping[str, Sequence[str]] = field(default_factory=dict)

    __pydantic_config__ = ConfigDict(extra="forbid")
