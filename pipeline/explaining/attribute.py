"""States what a lens is fitted to: two datasets that differ in an attribute, or a change.

    >>> [str(each) for each in attributes_of(["foggy:clear", "blur"])]
    ['foggy:clear', 'blur 0.005', 'blur 0.01', 'blur 0.02']

The attributes of a change are made for the fit: images as they are, and altered copies of each.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from pipeline.altered_pictures import PICTURE_CHANGES
from pipeline.catalogue import check_version_name
from pipeline.errors import UsageError
from pipeline.wording import option

UNCHANGED = "as it is"
"""The name of images without a change. No dataset can have it, nor that of altered copies."""


@dataclass(frozen=True)
class Attribute:
    """Two datasets that differ in an attribute.

    Attributes:
        with_it: Name of the dataset, or of the version, with the attribute.
        without: Name of the one without it.
        paired: Whether they are the same images but for the attribute.
    """

    with_it: str
    without: str
    paired: bool = False

    @classmethod
    def parse(cls, text: str) -> Attribute:
        """Reads an attribute.

        Args:
            text: WITH:WITHOUT, or WITH=WITHOUT for the same images.

        Returns:
            The attribute.

        Raises:
            UsageError: If the text is none of these, or names one dataset twice.
        """
        signs = [found.start() for found in re.finditer("[:=]", text)]
        if not signs or signs[0] == 0 or signs[-1] == len(text) - 1:
            near = get_close_matches(text, PICTURE_CHANGES, 1)
            raise UsageError(
                f"attribute is {text!r}; name the dataset that shows it, a colon, and the dataset "
                "that does not, such as foggy:clear. Write foggy=clear where they are the same "
                f"images. Or name a change that is made for the fit: {', '.join(PICTURE_CHANGES)}; "
                f"such as {option('ignore', near or ['brightness'])}"
            )
        # A name may have colons after its @. One sign alone has names on both of its sides.
        splits = [at for at in signs if _is_name(text[:at])] or signs[:1]
        at = next((at for at in splits if _is_name(text[at + 1 :])), splits[-1])
        with_it, without = text[:at], text[at + 1 :]
        if with_it == without:
            raise UsageError(f"attribute is {text!r}; name two different datasets")
        return cls(check_version_name(with_it), check_version_name(without), text[at] == "=")

    @property
    def is_change(self) -> bool:
        """Whether it is made for the fit, of images as they are."""
        return self.without == UNCHANGED

    def __str__(self) -> str:
        if self.is_change:
            return self.with_it
        return f"{self.with_it}{'=' if self.paired else ':'}{self.without}"


def copies_named(word: str, strength: float) -> str:
    """Names the altered copies of a change, as `blur 0.01`."""
    return f"{word} {strength:g}"


def attributes_of(texts: Sequence[str]) -> list[Attribute]:
    """Reads what a lens should ignore or keep.

    Args:
        texts: Each a word of `PICTURE_CHANGES`, WITH:WITHOUT, or WITH=WITHOUT.

    Returns:
        The attributes; of a word, one for each strength.

    Raises:
        UsageError: If a text is none of these, names one dataset twice, or comes twice.
    """
    found = []
    for text in texts:
        if text not in PICTURE_CHANGES:
            found.append(Attribute.parse(text))
            continue
        names = (copies_named(text, each) for each in PICTURE_CHANGES[text].strengths)
        found += [Attribute(name, UNCHANGED, paired=True) for name in names]
    if len({frozenset((of.with_it, of.without)) for of in found}) != len(found):
        raise UsageError(f"an attribute is named twice among {', '.join(texts)}")
    return found


def _is_name(text: str) -> bool:
    try:
        check_version_name(text)
    except UsageError:
        return False
    return True
