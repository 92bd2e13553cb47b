"""States what a lens is fitted to: two datasets that differ in an attribute.

>>> Attribute.parse("foggy:clear").without
'clear'
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from pipeline.catalogue import check_version_name
from pipeline.errors import UsageError


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
            raise UsageError(
                f"attribute is {text!r}; name the dataset that shows it, a colon, and the dataset "
                "that does not, such as foggy:clear. Write foggy=clear where they are the same "
                "images"
            )
        # A name may have colons after its @. One sign alone has names on both of its sides.
        splits = [at for at in signs if _is_name(text[:at])] or signs[:1]
        at = next((at for at in splits if _is_name(text[at + 1 :])), splits[-1])
        with_it, without = text[:at], text[at + 1 :]
        if with_it == without:
            raise UsageError(f"attribute is {text!r}; name two different datasets")
        return cls(check_version_name(with_it), check_version_name(without), text[at] == "=")

    def __str__(self) -> str:
        return f"{self.with_it}{'=' if self.paired else ':'}{self.without}"


def _is_name(text: str) -> bool:
    try:
        check_version_name(text)
    except UsageError:
        return False
    return True
