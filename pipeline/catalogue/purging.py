"""Removes what still holds erased images, and proves by a search that nothing names them any more.

    >>> purge(catalogue, ObjectSearch(names), doomed=[]).removed                  # doctest: +SKIP
    14

This follows a commit that has put other versions in the place of those with the images. What it
removes is not left to a collection of garbage: the grace period is for jobs that run, and these
must not use it any more.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from itertools import chain

from pipeline import storage
from pipeline.catalogue.catalogue import Catalogue
from pipeline.catalogue.commit import VERSION_FILES, Commit
from pipeline.catalogue.garbage_collection import NotedPlan, needed_by_version, noted_plans
from pipeline.catalogue.kept_lenses import lenses_fitted_on
from pipeline.catalogue.kept_outliers import measured_dnas
from pipeline.catalogue.kept_versions import KeptVersion, kept_versions
from pipeline.catalogue.layout import RECOUNT_FOLDER, WINDOWS
from pipeline.catalogue.matrix_header import find_matrix_metadata
from pipeline.catalogue.object_search import ObjectSearch
from pipeline.catalogue.replacing import ReplacedKey
from pipeline.catalogue.version_names import dataset_of
from pipeline.counting import cells_uri, is_counted_now, partial_uri, plan_folds
from pipeline.errors import CorruptFile, SourceError, VdnaError
from pipeline.events import Listener, Started, StepDone, ignore, stage
from pipeline.mapper import map_in_order
from pipeline.sources import Manifest, walk_widely
from pipeline.storage import Stored
from pipeline.wording import count_of

SEARCHERS = 8
"""Threads that search objects. Each has an object in memory, or a temporary file of it."""

SUMS = ("partials", "cells", "nodes")
"""The folders of a dataset's work that hold sums of images."""

_RECOUNTED = re.compile(rf"_work/{RECOUNT_FOLDER}[0-9a-f]{{16}}/({'|'.join(SUMS)})/[^/]+")
"""The sums of a recount. A dataset of such a name has a folder more, of its spec."""


def every_version(catalogue: Catalogue, newest: Commit | None = None) -> list[KeptVersion]:
    """Finds all versions that the log names, with their parts.

    Args:
        catalogue: The catalogue.
        newest: The commit to begin with; None for the newest of all.

    Returns:
        The versions, the newest first. A collection of garbage may have removed old ones.
    """
    return list(kept_versions(catalogue.log(newest)))


@dataclass(frozen=True)
class Purged:
    """What a purge has done.

    Attributes:
        removed: How many objects were removed.
        searched: How many were searched, and are free of the names.
        running: Datasets that are being built by a plan with the images, and so in vain.
        lenses: Urls of lenses that were fitted on sums with erased images, and stay.
    """

    removed: int
    searched: int
    running: tuple[str, ...] = ()
    lenses: tuple[str, ...] = ()


def purge(
    catalogue: Catalogue,
    search: ObjectSearch,
    doomed: Collection[str],
    lists: Collection[str] = (),
    progress: Listener = ignore,
    before: Callable[[], None] | None = None,
) -> Purged:
    """Removes all that holds erased images, and searches what is left.

    These are removed:

    - what is known to hold them, if no kept version needs it;
    - of the datasets that any erasure has touched, of names that have neither a version nor a plan,
      as after a rename that was cut off, and of all that have sums if a list has one of the images:
      sums and files of any age that no kept version or running build needs. They name no images, so
      nothing else tells whether they count one, or hold its hash;
    - the sums of `vdna verify --deep` on a cluster, which tell no dataset. One that runs has to be
      run again;
    - matrices with a DNA that no kept version has, and what was derived from matrices;
    - outliers whose distances were measured to such a DNA;
    - whatever else names one of the images and is needed by no kept version.

    A build that has counted shards while it listed keeps those of lists without the images. The
    others are removed with what states them, be the build dead or not: a dead one counts what is
    lacking when it is run again, and one that runs ends with an error.

    Lists of images go last, so that a purge that was cut off finds everything again. Plans that use
    these lists go first, as a build that begins now would keep shards of them. What another job has
    committed meanwhile stays whole: it is looked at again before lists are removed, and at the end.

    Args:
        catalogue: The catalogue, whose versions are all free of the images.
        search: Finds the names.
        doomed: Urls of objects that are known to hold the images, as names or in their sums.
        lists: The names of the entries files among these.
        progress: Told what is searched.
        before: Called once, before anything is removed, to commit the receipt; None if that is
            committed. A build that began before cannot commit after it.

    Returns:
        What was done.

    Raises:
        VdnaError: Something names an image and must not be removed, or cannot be searched. Or a
            version that was committed meanwhile needs what was removed before.
    """
    return _Purge(catalogue, search, doomed, lists, progress, before).run()


class _Purge:
    def __init__(
        self,
        catalogue: Catalogue,
        search: ObjectSearch,
        doomed: Collection[str],
        lists: Collection[str],
        progress: Listener,
        before: Callable[[], None] | None,
    ) -> None:
        self._before = before
        self._catalogue = catalogue
        self._search = search
        self._lists = set(lists)
        self._progress = progress
        self._head = head = catalogue.head()
        self._since = None
        if head.erasure:
            self._since = storage.info(catalogue.log_uri(head.erasure)).modified
        self._replaced = {
            key.dna
            for of in head.replaced.values()
            for key, now in ((ReplacedKey.parse(text), now) for text, now in of.items())
            if now is None or now.dna != key.dna
        }
        self._folders: tuple[str, ...] = ()
        self._doomed = set(doomed)
        self._looked = -1
        self._of_versions: dict[tuple[str, ...], list[str]] = {}
        self._needed: set[str] = set()
        self._planned: dict[str, datetime | None] = {}
        self._removed: set[str] = set()
        self._running: set[str] = set()

    def run(self) -> Purged:
        """Removes, searches, removes what was found, and searches what came meanwhile."""
        self._forget_plans()
        items = self._listed()
        self._look()
        self._folders = tuple(self._touched_folders(items))
        self._remove(item.uri for item in items if self._is_doomed(item))
        items = self._listed()
        known = set(items)
        named, broken = self._searched(items)
        self._look()
        self._remove(self._cut_listings(named, items))  # before their parts
        self._remove(uri for uri in named if self._may_remove(uri))
        left = self._listed()
        later, also_broken = self._searched([item for item in left if item not in known])
        self._require_unharmed()
        there = {item.uri for item in left}
        named = {uri: what for uri, what in sorted({**named, **later}.items()) if uri in there}
        broken |= also_broken
        log = self._catalogue.log_uri(0).rpartition("/")[0] + "/"
        in_log = {uri for uri in (*named, *broken) if uri.startswith(log)}
        _require_clean(named, broken, in_log, self._needed)
        running, lenses = tuple(sorted(self._running)), self._fitted_lenses()
        return Purged(len(self._removed), len(left), running, lenses)

    def _fitted_lenses(self) -> tuple[str, ...]:
        """Finds lenses of sums that had an image. No commit names the sum of a window of days."""
        replaced, kept = self._head.replaced, self._kept_dnas

        def had_an_image(name: str, dna: str) -> bool:
            of_window = "@" in name and dataset_of(name) in replaced
            return dna not in kept and (dna in self._replaced or of_window)

        return lenses_fitted_on(self._catalogue, had_an_image) if replaced else ()

    def _listed(self) -> list[Stored]:
        root = self._catalogue.root
        return [*storage.walk(root), *storage.leftovers(root)]

    def _forget_plans(self) -> None:
        """Removes the plans whose lists go, or are gone: no build is to keep shards of these.

        Of a plan that was not complete yet, what is left without these lists is stored.
        """
        for plan, _ in self._plans():
            ahead = list(plan.counted_ahead(self._catalogue))
            outdated = [some for _, some in ahead if self._is_outdated(some)]
            is_outdated = plan.manifest is not None and self._is_outdated(plan.manifest)
            if outdated or is_outdated:
                self._commit_receipt()
            work = self._catalogue.work_uri(plan.dataset, plan.spec)
            if (outdated or is_outdated) and is_counted_now(work):
                self._running.add(plan.dataset)
            if is_outdated:
                self._remove_all([plan.uri])
            for some in outdated:
                self._store_rest(plan, some)

    def _store_rest(self, plan: NotedPlan, some: Manifest) -> None:
        """Stores a manifest of those shards whose lists stay."""
        lost = self._outdated_lists(some)
        rest = some.select(head.index for head in some.heads if head.address.file not in lost)
        if rest.heads:
            uri = self._catalogue.uri("manifests", plan.spec, plan.dataset, rest.digest)
            storage.replace(uri, rest.data)

    def _plans(self) -> list[tuple[NotedPlan, datetime | None]]:
        """Returns the plan of each dataset, and when it was noted."""
        work = storage.join(self._catalogue.root, "_work")
        try:
            noted = {item.uri: item.modified for item in walk_widely(work)}
        except SourceError:
            return []
        return [(plan, noted[plan.uri]) for plan in noted_plans(self._catalogue, noted)]

    def _is_outdated(self, manifest: Manifest) -> bool:
        return bool(self._outdated_lists(manifest))

    def _outdated_lists(self, manifest: Manifest) -> set[str]:
        """Returns the lists of a manifest that have one of the images, or are gone."""
        files = manifest.files
        return (self._lists & set(files)) | set(manifest.entries.missing(files))

    def _look(self) -> None:
        """Finds what kept versions need by now, and builds whose images have no erased one."""
        catalogue = self._catalogue
        newest = catalogue.head().number
        if newest != self._looked:
            for of in every_version(catalogue):
                if of.identity not in self._of_versions:
                    try:
                        uris = needed_by_version((catalogue.root, of, True))
                    except SourceError:  # an old version, removed by a collection
                        uris = []
                    self._of_versions[of.identity] = uris
            self._looked = newest
        self._needed = set(chain.from_iterable(self._of_versions.values()))
        self._planned = {}
        for plan, noted in self._plans():
            self._needed.add(plan.uri)
            self._needed.update(self._needed_while_listing(plan))
            if plan.manifest is not None and not self._is_outdated(plan.manifest):
                self._needed.update(plan.needed(catalogue))
                work = catalogue.work_uri(plan.dataset, plan.spec)
                levels, _ = plan_folds(plan.manifest, work, plan.spec, plan.products)
                self._needed.update(node.uri for level in levels for node in level)
                for kind in VERSION_FILES:
                    folder = catalogue.uri(kind, plan.spec, plan.dataset, "").rpartition("/")[0]
                    self._planned[f"{folder}/"] = noted

    def _needed_while_listing(self, plan: NotedPlan) -> Iterator[str]:
        """Yields what a build may go on with that has not listed its whole source yet."""
        work = self._catalogue.work_uri(plan.dataset, plan.spec)
        for uri, some in plan.counted_ahead(self._catalogue):
            if not self._is_outdated(some):
                yield uri
                yield from map(some.entries.uri, some.files)
                for key in some.keys(plan.spec, plan.products):
                    yield from (partial_uri(work, key), cells_uri(work, key))

    def _require_unharmed(self) -> None:
        """Checks that no version that was committed meanwhile needs a file that was removed.

        The next build counts sums again that are gone.

        Raises:
            VdnaError: One does.
        """
        self._look()
        work = f"{self._catalogue.root}/_work/"
        needed = set(chain.from_iterable(self._of_versions.values()))
        lost = {uri for uri in self._removed & needed if not uri.startswith(work)}
        gone = sorted(uri for uri in lost if not storage.exists(uri))
        if gone:
            raise VdnaError(
                f"{gone[0]} was removed, and a version that another job has committed meanwhile "
                "needs it. Build its dataset again, and then run the same command again"
            )

    @cached_property
    def _kept_dnas(self) -> set[str]:
        return {of.version.dna for of in every_version(self._catalogue)}

    def _touched_folders(self, items: Iterable[Stored]) -> Iterable[str]:
        """Yields the folders of datasets that lost images, and of those that never came to be."""
        catalogue = self._catalogue
        touched = {
            (name, ReplacedKey.parse(text).spec)
            for name, of in self._head.replaced.items()
            for text in of
        }
        if self._since or self._lists:
            touched |= self._not_committed(items)
        for name, spec in touched:
            for kind in VERSION_FILES:
                yield catalogue.uri(kind, spec, name, "").rpartition("/")[0] + "/"
            for folder in SUMS:
                yield f"{catalogue.work_uri(name, spec)}/{folder}/"

    def _not_committed(self, items: Iterable[Stored]) -> set[tuple[str, str]]:
        """Finds datasets and specs whose sums may be of a build that has not committed.

        Returns:
            The name and spec of each. The work of a ranking has the same form, with `_ranks` and
            the digest of the ranking.
        """
        found = set()
        for item in items:
            parts = item.uri.removeprefix(f"{self._catalogue.root}/").split("/")
            if parts[0] == "_work" and len(parts) > 4 and parts[-2] in SUMS:
                found.add(("/".join(parts[1:-3]), parts[-3]))
        if self._lists:
            return found
        planned = {
            (plan.dataset, plan.spec) for plan, _ in self._plans() if plan.manifest is not None
        }
        return found - planned - {(name, spec) for name, spec, *_ in self._of_versions}

    def _is_doomed(self, item: Stored) -> bool:
        """Tells whether an object holds an erased image, or may."""
        uri, path = item.uri, item.uri.removeprefix(f"{self._catalogue.root}/")
        if uri in self._doomed and uri not in self._needed:
            return True
        if path.startswith("matrix/"):
            stated = find_matrix_metadata(uri) if self._since else None  # also of windows
            return stated is not None and not set(stated["members"].values()) <= self._kept_dnas
        has_erased = bool(self._since or self._lists)
        if _RECOUNTED.fullmatch(path):
            return has_erased
        of_a_dna = ("_work/_fold_points/", "_work/_coarse_curves/")
        if path.startswith(of_a_dna) and has_erased:  # also of windows, which no commit names
            return path.rpartition("/")[2].removesuffix(".parquet") not in self._kept_dnas
        if path.startswith("_work/_outliers/") and has_erased:  # torn ones can be found again
            measured = measured_dnas(uri)
            return not measured or not measured <= self._kept_dnas
        if path.startswith(("_work/_pair_neurons/", "_work/_tiles/")) or uri.endswith(".tmp"):
            return self._is_older(item)
        kind, _, name = path.partition("/")
        is_replaced = kind in VERSION_FILES and (
            name.rpartition("/")[2].removesuffix(".parquet") in self._replaced
        )
        return (
            (is_replaced or uri.startswith(self._folders))
            and uri not in self._needed
            and not self._may_be_committed(item)
        )

    def _is_older(self, item: Stored) -> bool:
        """Tells whether an object was there before the newest erasure."""
        since: datetime | None = self._since
        return since is not None and item.modified is not None and item.modified < since

    def _may_be_committed(self, item: Stored) -> bool:
        """Tells whether a build that runs may have stored it as a file of its version."""
        if self._is_older(item) or f"/{WINDOWS}/" in item.uri:
            return False
        return any(
            item.uri.startswith(folder)
            and (noted is None or item.modified is None or noted <= item.modified)  # plans go first
            for folder, noted in self._planned.items()
        )

    def _cut_listings(self, named: Iterable[str], items: Iterable[Stored]) -> list[str]:
        """Finds what is kept of interrupted listings of which a part is to go.

        Else the next build would go on with such a listing, and end for want of the part.

        Args:
            named: What is to go.
            items: All objects.

        Returns:
            The urls of what tells how far these listings have come.
        """
        folder = self._catalogue.listing_uri("").rstrip("/") + "/"

        def listing_of(uri: str) -> str:
            return uri.removeprefix(folder).partition("/")[0] if uri.startswith(folder) else ""

        cut = {listing_of(uri).removesuffix("-parts") for uri in named} - {""}
        return [item.uri for item in items if listing_of(item.uri) in cut]

    def _may_remove(self, uri: str) -> bool:
        kind = uri.removeprefix(f"{self._catalogue.root}/").partition("/")[0]
        return kind in (*VERSION_FILES, "entries", "_work", "matrix") and uri not in self._needed

    def _remove(self, uris: Iterable[str]) -> None:
        """Removes objects, lists of images last, and only those that nothing needs by then."""
        folder = f"{self._catalogue.entries_uri}/"
        ordered = sorted(uris)
        if ordered and self._commit_receipt():
            self._look()  # a build may have committed since, and cannot any more
            ordered = [uri for uri in ordered if uri not in self._needed]
        lists = [uri for uri in ordered if uri.startswith(folder)]
        self._remove_all([uri for uri in ordered if not uri.startswith(folder)])
        if lists:
            self._look()
            self._remove_all([uri for uri in lists if uri not in self._needed])

    def _commit_receipt(self) -> bool:
        """Commits the receipt unless it is committed; tells whether it has done so now."""
        before, self._before = self._before, None
        if before is not None:
            before()
        return before is not None

    def _remove_all(self, uris: Sequence[str]) -> None:
        if uris:
            storage.delete_all(uris)
            self._removed.update(uris)

    def _searched(self, items: Sequence[Stored]) -> tuple[dict[str, str], dict[str, str]]:
        """Searches objects.

        Returns:
            What was found in those in which something was, and why others could not be searched.
        """
        named: dict[str, str] = {}
        broken: dict[str, str] = {}
        started = Started(len(items), len(items), unit="objects", step="objects")
        with stage(self._progress, started):
            found = map_in_order(_result_of(self._search.found_in_object), items, SEARCHERS)
            for item, result in zip(items, found, strict=True):
                if isinstance(result, CorruptFile):
                    broken[item.uri] = str(result)
                elif result:
                    named[item.uri] = result
                self._progress(StepDone(1))
        return named, broken


def _result_of(search: Callable[[Stored], str]) -> Callable[[Stored], str | CorruptFile]:
    """Returns a search that returns errors of damaged objects; one that is gone has no names."""

    def result(item: Stored) -> str | CorruptFile:
        try:
            return search(item)
        except SourceError:
            return ""
        except CorruptFile as error:
            return error

    return result


def _require_clean(
    named: Mapping[str, str],
    broken: dict[str, str],
    in_log: Collection[str],
    needed: Collection[str],
) -> None:
    """Raises an error that says of each object why it is not free of the images, and what to do.

    Args:
        named: What was found in objects.
        broken: Why others cannot be searched.
        in_log: Those of them that are in the log.
        needed: What versions and builds need.

    Raises:
        VdnaError: There is such an object.
    """
    if not named and not broken:
        return

    def advice(uri: str) -> str:
        if uri in in_log:
            return ", and is in the log"
        if uri in needed:
            return ", and a version or a build that came meanwhile needs it"
        return "; delete it"

    lines = [f"{uri} {what}{advice(uri)}" for uri, what in named.items()]
    lines += [
        f"{error}, so it cannot be searched; restore it"
        + ("" if uri in in_log or uri in needed else ", or delete it")
        for uri, error in broken.items()
    ]
    raise VdnaError(
        f"the erasure is not proved: {count_of(len(lines), 'object')} of the catalogue "
        f"{'is' if len(lines) == 1 else 'are'} not free of the images. Mend what can be mended, "
        "and run the same command again:\n" + "\n".join(lines[:20])
    )
