"""Makes the pages of a catalogue when they are asked for, and keeps them.

    >>> LiveSite(Catalogue("dnas")).page("/")                                # doctest: +SKIP

It only reads the catalogue: distances that nobody has kept there are computed again by each
`LiveSite`.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import wait
from dataclasses import dataclass, replace
from html import escape
from threading import Lock

from pipeline.catalogue import Catalogue, Commit, outliers_identity
from pipeline.comparing import Effort, Matrix, compare, resolve_versions
from pipeline.errors import CorruptFile, NotFound, known_error, redact
from pipeline.events import Listener, Said, ignore
from pipeline.explaining import LOOK, Ranking, explain
from pipeline.reporting.html.dataset_page import (
    PAGE_IMAGES,
    gather_dataset,
    only_last_plane,
    render_dataset,
)
from pipeline.reporting.html.dataset_panels import gather_matrix_page
from pipeline.reporting.html.explanation_page import gather_explanation, render_explanation
from pipeline.reporting.html.frame import asset, document
from pipeline.reporting.html.gallery import render_gallery
from pipeline.reporting.html.links import (
    Addresses,
    from_pair,
    from_ranking,
    titles_told_apart,
)
from pipeline.reporting.html.matrix_page import render_matrix_page
from pipeline.reporting.html.page_data import RankingLink
from pipeline.reporting.html.page_making import PageInMaking, PageMaker
from pipeline.reporting.html.ranking_gallery import gallery_of
from pipeline.reporting.report_options import SHOWN_IMAGES

HELD_PAGES = 64
"""How many pages are kept. The ones that were asked for longest ago are made again, but the report
is always kept, since its distances may take long."""

HELD_FORMER = 2
"""How many commits before the newest one have their distances held, which may be large."""

_Pages = OrderedDict[str, PageInMaking]
"""Pages that are kept or in the making, the one that was asked for longest ago first."""

_PAIR = re.compile(r"/pairs/([0-9]{1,18})/([0-9]{1,6})-([0-9]{1,6})\.html")
_DATASET = re.compile(r"/datasets/([0-9]{1,18})/([0-9]{1,6})\.html")
_RANKING = re.compile(r"/rankings/([0-9]{1,18})/([0-9]{1,6})\.html")


@dataclass(frozen=True)
class Waiting:
    """Stands for a page that is being made.

    Attributes:
        progress: How far the work is, in one line.
        html: A page that says so, and opens the page when it is there.
    """

    progress: str
    html: bytes


class LiveSite:
    """The pages of the newest commit of a catalogue: the report, datasets, pairs, and rankings.

    Two pages are made at a time, others wait in order, and pages that are kept are answered
    meanwhile. A page is kept until others need its room, or until a request finds a newer commit.
    The page of a dataset is made again, too, when its images were ranked. After a
    request finds that images were erased, or that another catalogue is in this one's place, no page
    that was begun before is answered.

    Args:
        catalogue: The catalogue.
        spec: The spec that is looked at; None to choose it as `compare` does.
        samples: Images of each dataset on a page.
        effort: How distances are computed. None of them are kept in the catalogue.
        rankings: Rankings of images by their distance to datasets of the catalogue.
        progress: Is told how far the work is.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        *,
        spec: str | None = None,
        samples: int = SHOWN_IMAGES,
        effort: Effort | None = None,
        rankings: Sequence[Ranking] = (),
        progress: Listener | None = None,
    ) -> None:
        self._catalogue, self._spec, self._samples = catalogue, spec, samples
        self._rankings = rankings
        self._listener = progress or ignore
        self._effort = replace(effort or Effort(), keep=False)
        self._maker = PageMaker(self._listener)
        self._pages: _Pages = OrderedDict()
        self._head: Commit | None = None
        self._newest = 0
        self._distances: dict[int, Matrix] = {}
        self._comparing, self._held, self._looking = Lock(), Lock(), Lock()

    def begin(self) -> None:
        """Begins to make the report. Raises as `compare` does if there is nothing to compare."""
        resolve_versions(self._catalogue, spec=self._spec)
        self._asked("/", *self._look())

    def page(self, path: str) -> bytes | None:
        """Returns a page, and waits until it is made.

        Args:
            path: `/` for the report, or the path of one of its links.

        Returns:
            The bytes of the HTML file, or None if there is no such page. Raises as `compare` does.
        """
        found = self.page_within(path, None)
        return None if isinstance(found, Waiting) else found

    def page_within(
        self, path: str, seconds: float | None, *, forget: bool = True
    ) -> bytes | Waiting | None:
        """Returns a page if it is made within some seconds.

        Args:
            path: As `page` takes it.
            seconds: How long to wait; None for as long as it takes.
            forget: Whether a page that could not be made is made again when it is next asked for.

        Returns:
            The bytes of the HTML file, what stands for it while it is made, or None if there is no
            such page. Raises as `compare` does.
        """
        newest, pages = self._look()
        page = self._asked(path, newest, pages)
        if page is None:
            return None
        was_made = page.made.done()
        if not wait([page.made], seconds).done:
            progress = page.progress
            return Waiting(progress, _waiting_page(self._catalogue.root, progress))
        if not was_made and self._look()[1] is not pages:
            return self.page_within(path, seconds, forget=forget)
        if page.made.exception() is not None and forget:
            with self._held:
                for name in [name for name, kept in pages.items() if kept is page]:
                    del pages[name]
        return page.made.result()

    @property
    def is_making(self) -> bool:
        """Whether a page is being made, or waits."""
        return self._maker.is_busy

    def _asked(self, path: str, newest: int, pages: _Pages) -> PageInMaking | None:
        """Returns the page of a path, which may still be in the making; None if there is none."""
        if path == "/":
            return self._kept(pages, f"/{newest}", lambda hear: self._report(newest, hear))
        if asked := _RANKING.fullmatch(path):
            number, k = map(int, asked.groups())
            if not 0 < number <= newest or k >= len(self._rankings):
                return None
            return self._kept(pages, path, lambda _: self._ranking(number, self._rankings[k]))
        asked = _DATASET.fullmatch(path) or _PAIR.fullmatch(path)
        if asked is None:
            return None
        number, *places = map(int, asked.groups())
        if not 0 < number <= newest:
            return None
        versions = resolve_versions(self._catalogue, at=number, spec=self._spec)[1]
        names = list(versions)
        if places[-1] >= len(names):
            return None
        if len(places) == 1:
            version = versions[names[places[0]]]
            return self._kept(
                pages,
                path,
                lambda hear: self._dataset(number, places[0], hear),
                lambda: outliers_identity(self._catalogue, version),
            )
        i, j = places
        if not i < j:
            return None
        return self._kept(pages, path, lambda hear: self._explanation(number, names, i, j, hear))

    def _look(self) -> tuple[int, _Pages]:
        """Looks for a newer commit, and drops what is kept of those before it.

        After an erasure, or if the catalogue is another one, the pages in the making are dropped,
        too: they may have read the images already. Requests look one by one, so that none takes up
        an older commit again.

        Returns:
            The number of the newest commit, and the pages to look among.
        """
        with self._looking:
            head, before = self._catalogue.head(), self._head
            goes_on = before is None or self._leads_to(before, head)
            with self._held:
                if not goes_on:
                    # What still comes of those in the making goes where nobody looks.
                    self._pages, self._distances = OrderedDict(), {}
                elif head.number > self._newest:
                    for name in [of for of, page in self._pages.items() if page.made.done()]:
                        del self._pages[name]
                    self._distances.clear()
                self._head, self._newest = head, head.number
                return head.number, self._pages

    def _leads_to(self, before: Commit, head: Commit) -> bool:
        """Tells whether the log goes on from one commit to another, and nothing was erased.

        Args:
            before: The newest commit when a request looked last.
            head: The newest one now.

        Returns:
            Whether it is so. It is not if another catalogue is there now, or a copy of former days.
        """
        if head.number <= before.number or head.erasure != before.erasure:
            return head == before
        try:
            return self._catalogue.commit(before.number) == before
        except (NotFound, CorruptFile):
            return False

    def _kept(
        self,
        pages: _Pages,
        name: str,
        make: Callable[[Listener], bytes],
        state: Callable[[], str] = lambda: "",
    ) -> PageInMaking:
        """Returns a page that is kept or in the making; else begins to make it.

        Args:
            pages: The pages to look among.
            name: What the page is kept under.
            make: Makes it.
            state: Finds the state of what it is made of besides the commit. A page of another
                state is made again. It is not asked while the page is in the making.

        Returns:
            The page.
        """
        with self._held:
            page = pages.get(name)
            if page is not None and not page.made.done():
                pages.move_to_end(name)
                return page
        now = state()
        with self._held:
            page = pages.get(name)
            if page is not None and (page.state == now or not page.made.done()):
                pages.move_to_end(name)
                return page
            page = pages[name] = self._maker.begin(make, now)
            pages.move_to_end(name)
            report = f"/{self._newest}"
            others = [of for of, kept in pages.items() if kept.made.done() and of != report]
            for of in others[: max(0, len(pages) - HELD_PAGES)]:
                del pages[of]
            return page

    def tell(self, error: Exception) -> str:
        """Tells the listener of progress about an error, in one line.

        Args:
            error: What a request ended with.

        Returns:
            The line, without secrets.
        """
        said = redact(str(known_error(error))) or type(error).__name__
        self._listener(Said(f"a page could not be answered: {' '.join(said.split())}"))
        return said

    def _compared(self, number: int, progress: Listener) -> Matrix:
        """Computes the distances of a commit, and holds those that pages of datasets show."""
        effort, held = replace(self._effort, progress=progress), self._distances
        matrix = compare(self._catalogue, at=number, spec=self._spec, effort=effort)
        held[number] = only_last_plane(matrix)
        former = [of for of in list(held) if of != self._newest]
        for of in former[:-HELD_FORMER]:
            held.pop(of, None)
        return matrix

    def _distances_of(self, number: int, progress: Listener) -> Matrix:
        with self._comparing:
            found = self._distances.get(number)
            if found is not None:
                return found
            return only_last_plane(self._compared(number, progress))

    def _report(self, number: int, progress: Listener) -> bytes:
        catalogue = self._catalogue
        with self._comparing:
            matrix = self._compared(number, progress)
        page = gather_matrix_page(
            catalogue,
            [matrix],
            apart=sorted(catalogue.at(number).datasets.keys() - set(matrix.names)),
            at=number,
            samples=self._samples,
            progress=progress,
            keep=False,
        )
        return render_matrix_page(
            replace(
                page,
                pair_pages=f"pairs/{number}/",
                dataset_pages=[f"datasets/{number}/{i}.html" for i in range(len(matrix.names))],
                rankings=self._ranking_links(number, ""),
            )
        )

    def _dataset(self, number: int, i: int, progress: Listener) -> bytes:
        matrix, up = self._distances_of(number, progress), "../../"
        page = gather_dataset(
            self._catalogue,
            matrix.names[i],
            matrix,
            self._catalogue.at(number),
            samples=PAGE_IMAGES if self._samples else 0,
        )
        where = Addresses(
            up,
            [f"{j}.html" for j in range(len(matrix.names))],
            lambda i, j: f"{up}pairs/{number}/{i}-{j}.html",
            self._ranking_links(number, up),
        )
        return render_dataset(page, where)

    def _explanation(
        self, number: int, names: Sequence[str], i: int, j: int, progress: Listener
    ) -> bytes:
        a, b, up = names[i], names[j], "../../"
        found = explain(
            self._catalogue,
            a,
            b,
            at=number,
            spec=self._spec,
            look=LOOK,
            progress=progress,
        )
        why = gather_explanation(self._catalogue, found, samples=self._samples)
        links = from_pair(up, a, b, self._ranking_links(number, up))
        own = [f"{up}datasets/{number}/{side}.html" for side in (i, j)]
        return render_explanation(why, links, own)

    def _ranking(self, number: int, ranking: Ranking) -> bytes:
        versions = resolve_versions(self._catalogue, at=number, spec=self._spec)[1]
        links = from_ranking("../../", ranking, versions)
        return render_gallery(gallery_of(self._catalogue, ranking, links))

    def _ranking_links(self, number: int, up: str) -> list[RankingLink]:
        titles = titles_told_apart(self._rankings)
        return [
            RankingLink(of.name, titles[k], f"{up}rankings/{number}/{k}.html")
            for k, of in enumerate(self._rankings)
        ]


def _waiting_page(root: str, progress: str) -> bytes:
    parts = {"progress": escape(progress)}
    return document("waiting", root, asset("page.css"), parts, asset("waiting.js"), asks=True)
