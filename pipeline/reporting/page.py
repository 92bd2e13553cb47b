"""Pages as results of Python's functions: a notebook shows them, and they save themselves.

>>> html_page("dnas", compare("dnas")).save("matrix.html")                     # doctest: +SKIP
"""

from __future__ import annotations

import html
from dataclasses import dataclass

from pipeline.comparing import Matrix
from pipeline.reporting.headline_sentences import headline
from pipeline.reporting.html.frame import save_page
from pipeline.wording import count_of


@dataclass(frozen=True, repr=False)
class HtmlPage:
    """A page that opens offline: one HTML file. A notebook shows it.

    Attributes:
        html: The bytes of the file.
    """

    html: bytes

    def __repr__(self) -> str:
        return f"<HtmlPage of {len(self.html) / 1e6:.1f} MB>"

    def _repr_html_(self) -> str:
        page = html.escape(self.html.decode(), quote=True)
        return f'<iframe srcdoc="{page}" width="100%" height="700" style="border:0"></iframe>'

    def save(self, out: str) -> None:
        """Writes the page.

        Args:
            out: The path or url to write (.html).
        """
        save_page(self.html, out)


@dataclass(frozen=True, repr=False)
class Report(HtmlPage):
    """The page of a snapshot.

    Attributes:
        matrices: The matrices on it: of all neurons, then through each lens.
        notes: What a reader of the distances should know, a sentence each.
        explained: How many pairs have a page of their own in `site`.
    """

    matrices: tuple[Matrix, ...]
    notes: tuple[str, ...] = ()
    explained: int = 0

    @property
    def headline(self) -> str:
        """What stands out over all neurons, in the sentences that the page begins with."""
        return headline(self.matrices[0])

    def __repr__(self) -> str:
        datasets = count_of(len(self.matrices[0].names), "dataset")
        return f"<Report of {datasets}, {len(self.html) / 1e6:.1f} MB>"
