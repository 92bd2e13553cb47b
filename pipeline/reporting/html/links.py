"""Links between the pages of a report: the report itself, datasets, pairs, and rankings.

>>> way_back("../index.html", "city/day")
'../index.html#dataset=city%2Fday'
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import quote, urlencode

from pipeline.catalogue import Version
from pipeline.dna import UNIFORM
from pipeline.explaining import Ranking
from pipeline.reporting.html.page_data import Link, RankingLink
from pipeline.wording import some_of


@dataclass(frozen=True)
class Addresses:
    """Where the pages of a report are, as seen from the page of a dataset.

    Attributes:
        report: The address of the report.
        datasets: The address of each dataset's page.
        pair: Gives the address of the explanation of two datasets (i < j), or an empty text.
        rankings: The rankings of the report.
    """

    report: str
    datasets: Sequence[str]
    pair: Callable[[int, int], str]
    rankings: Sequence[RankingLink] = ()

    def open_pair(self, a: str, b: str) -> str:
        """Gives the address of the report with two datasets open."""
        return way_back(self.report, a, b)


def way_back(up: str, *names: str) -> str:
    """Gives the address of the report as `matrix/address.js` reads it.

    Args:
        up: The address of the report, seen from the page that has the link.
        names: Two datasets, to open that pair; one, to choose it; none, for the whole.

    Returns:
        The address.
    """
    if not names:
        return up
    if len(names) == 1:
        return f"{up}#{urlencode({'dataset': names[0]})}"
    return f"{up}#{urlencode({'pair': ' '.join(quote(name, safe='') for name in names)})}"


def ranking_title(ranking: Ranking) -> str:
    """Names a ranking: what was ranked, by the distance to what."""
    through = "" if ranking.lens == UNIFORM else f" through lens {ranking.lens}"
    return f"Images of {ranking.source} by distance to {ranking.name}{through}"


def titles_told_apart(rankings: Sequence[Ranking]) -> list[str]:
    """Names the rankings of a report. Those of one title say what their order is, too.

    Args:
        rankings: The rankings.

    Returns:
        A title for each.
    """
    titles = [ranking_title(ranking) for ranking in rankings]
    times = Counter(titles)
    return [
        title if times[title] == 1 else f"{title}, {_order_told(ranking)}"
        for title, ranking in zip(titles, rankings, strict=True)
    ]


def _order_told(ranking: Ranking) -> str:
    if not ranking.background:
        return "by the distance alone"
    return f"by the score against {some_of(list(ranking.background))}"


def from_pair(up: str, a: str, b: str, rankings: Iterable[RankingLink]) -> list[Link]:
    """Lists what the explanation of a pair leads to.

    Args:
        up: The address of the report.
        a: One dataset.
        b: The other.
        rankings: The rankings of the report, with their addresses seen from the explanation.

    Returns:
        The report with that pair open, and the rankings by distance to either dataset.
    """
    found = [Link(of.text, of.href) for of in rankings if of.name in (a, b)]
    return [Link("All datasets", way_back(up, a, b)), *found]


def from_dataset(name: str, where: Addresses) -> list[Link]:
    """Lists what the page of a dataset leads to, besides other datasets and pairs.

    Args:
        name: The dataset.
        where: Where the other pages are.

    Returns:
        The report with that dataset chosen, and the rankings by distance to it.
    """
    found = [Link(of.text, of.href) for of in where.rankings if of.name == name]
    return [Link("All datasets", way_back(where.report, name)), *found]


def from_ranking(up: str, ranking: Ranking, versions: Mapping[str, Version]) -> list[Link]:
    """Lists what the page of a ranking leads to.

    Args:
        up: The address of the report.
        ranking: The ranking.
        versions: The datasets of the report.

    Returns:
        The report, with the dataset chosen that images were ranked against; and the pair of that
        dataset and each one of the images that were ranked.
    """
    name = ranking.name
    if name not in versions:
        return [Link("All datasets", up)]
    ranked = [
        of for of, version in versions.items() if version.source == ranking.source and of != name
    ]
    return [
        Link("All datasets", up),
        Link(f"{name} among them", way_back(up, name)),
        *(Link(f"How {of} and {name} differ", way_back(up, of, name)) for of in ranked),
    ]
