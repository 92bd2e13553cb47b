"""Finds versions of datasets by their names: in a state of the catalogue, and in its history.

>>> Catalogue("dnas").find("photos@-1").images                       # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby, islice

from pipeline.catalogue.commit import Commit, Version
from pipeline.catalogue.day_windows import DayWindow
from pipeline.catalogue.name_changes import renamed_between
from pipeline.catalogue.replacing import as_replaced
from pipeline.catalogue.version_files import VersionFiles
from pipeline.catalogue.version_history import PastVersion, history_key, past_versions
from pipeline.catalogue.version_names import VersionName
from pipeline.errors import NotFound, VdnaError
from pipeline.wording import did_you_mean, option, some_of

LOOKED_BACK = 100
"""How many of the newest commits are read for an error that says which versions there are, or which
commit took a dataset out."""


@dataclass(frozen=True)
class NamedVersion:
    """A version that a name means.

    Attributes:
        version: The version.
        commit: Number of a commit that holds it.
    """

    version: Version
    commit: int


class VersionLookup(VersionFiles):
    """Finds the versions that names mean. Every name of a dataset may be that of a version."""

    def names(self, at: int | str | None = None, spec: str | None = None) -> list[str]:
        """Lists the datasets that have a version under a spec.

        Args:
            at: The state to look in, as `at` takes it.
            spec: The beginning of the spec's digest; None for the default spec.

        Returns:
            Their names, sorted.

        Raises:
            NotFound: If there is no such state or spec.
        """
        commit = self.head() if at is None else self.at(at)
        if not commit.datasets:
            return []
        chosen = self.spec_digest(commit, spec)
        return sorted(name for name, specs in commit.datasets.items() if chosen in specs)

    def spec_digest(
        self, commit: Commit, prefix: str | None = None, more: Iterable[str] = ()
    ) -> str:
        """Completes the digest of a spec.

        Args:
            commit: The commit to look in.
            prefix: The beginning of the digest; None for the catalogue's default spec.
            more: Specs that may be meant besides those of the commit.

        Returns:
            The digest.

        Raises:
            NotFound: If no spec, or several, begin so.
        """
        if prefix is None:
            if commit.default_spec is None:
                raise self._absent()
            return commit.default_spec
        known = sorted({*more, *(spec for specs in commit.datasets.values() for spec in specs)})
        found = [spec for spec in known if spec.startswith(prefix)]
        if len(found) != 1:
            raise NotFound(
                f"{len(found)} specs of {self.root} begin with {prefix!r}; there are: "
                f"{', '.join(known) or 'none'}"
            )
        return found[0]

    def find(self, name: str, at: int | str | None = None, spec: str | None = None) -> Version:
        """Finds a dataset's version.

        Args:
            name: The dataset, or the name of a version, as `VersionName.parse` takes it.
            at: The state to look in, as `at` takes it. Versions are counted back from it.
            spec: The beginning of the spec's digest; None for the dataset's only spec, or else the
                catalogue's default.

        Returns:
            The version.

        Raises:
            NotFound: If there is none. The message names what there is.
        """
        return self.resolve(name, at, spec).version

    def resolve(
        self, name: str, at: int | str | None = None, spec: str | None = None
    ) -> NamedVersion:
        """Finds a dataset's version, and a commit that holds it. Raises as `find` does.

        Args:
            name: As in `find`.
            at: As in `find`.
            spec: As in `find`.

        Returns:
            The version with the number of the commit.
        """
        return self.resolve_in(self.at(at), name, spec)

    def specs_beside(self, name: str, spec: str, at: int | str | None = None) -> list[str]:
        """Lists the other specs under which a dataset has a version.

        Args:
            name: The dataset, or the name of a version of it.
            spec: The digest of the spec that is left out.
            at: The state to look in, as `at` takes it.

        Returns:
            The digests, sorted.
        """
        dataset = VersionName.parse(name).dataset
        return sorted(self.at(at).datasets.get(dataset, {}).keys() - {spec})

    def find_all(
        self, names: Iterable[str], at: int | str | None = None, spec: str | None = None
    ) -> dict[str, Version]:
        """Finds the versions of many datasets in one commit, which is read once.

        Args:
            names: The datasets, or names of versions.
            at: As in `find`.
            spec: As in `find`.

        Returns:
            The versions, by the names that were given.

        Raises:
            NotFound: If one of them has none.
        """
        commit = self.at(at)
        return {name: self.resolve_in(commit, name, spec).version for name in names}

    def look_up(
        self, name: str, newest: Commit, spec: str | None = None
    ) -> Mapping[str, NamedVersion]:
        """Finds the versions that a name means, of all specs.

        Args:
            name: As in `find`.
            newest: The state to look in.
            spec: The beginning of the digest of the spec that is wanted, so that a window is not
                added up under others; None for all.

        Returns:
            The versions by the digests of their specs; one at least.

        Raises:
            NotFound: If there is none. The message names what there is.
        """
        named = VersionName.parse(name)
        if named.which is None:
            return self._in(newest, named.dataset)
        if isinstance(named.which, str):
            return self._tagged(named.dataset, named.which, newest)
        if isinstance(named.which, DayWindow):
            return self._window(name, named.dataset, newest, spec or "")
        if isinstance(named.which, datetime):
            state = self.as_of(named.which, newest)
        elif named.which >= 0:
            state = self._numbered(named.which, newest)
        else:
            return self._back(named.dataset, -named.which, newest)
        if state is None or named.dataset not in state.datasets:
            raise self._no_version(name, named.dataset, newest)
        return self._in(state, named.dataset)

    def resolve_in(self, commit: Commit, name: str, spec: str | None) -> NamedVersion:
        """Finds a dataset's version in a commit that was read already.

        Args:
            commit: The state to look in.
            name: As in `find`.
            spec: As in `find`.

        Returns:
            The version with the number of a commit that holds it.

        Raises:
            NotFound: If there is none. The message names what there is.
        """
        versions = self.look_up(name, commit, spec)
        if spec is None and len(versions) == 1:
            return next(iter(versions.values()))
        digest = self.spec_digest(commit, spec, versions)
        if digest not in versions:
            raise NotFound(
                f"{name} has no version under spec {digest}; it has one under: "
                f"{', '.join(sorted(versions))} (choose with {option('spec')})"
            )
        return versions[digest]

    def commit_that_made(self, dataset: str, version: Version, number: int) -> int:
        """Finds the commit that made a version, by which `vdna log` names it.

        It is searched for by halves, so that few commits of a long log are read.

        Args:
            dataset: The dataset.
            version: The version.
            number: Number of a commit that holds the version.

        Returns:
            Number of a commit that holds the version, while the one before it does not. If the
            version was replaced and came back, it may be the number of an earlier time.
        """
        head = self.head()

        def holds(at: int) -> bool:
            commit = as_replaced(self._read(at).commit, head)
            found = commit.datasets.get(dataset, {}).get(version.spec)
            return found is not None and history_key(found) == history_key(version)

        before, step = number - 1, 1
        while before > 0 and holds(before):
            number, step = before, 2 * step
            before = max(0, number - step)
        while number - before > 1:
            middle = (before + number) // 2
            number, before = (middle, before) if holds(middle) else (number, middle)
        return number

    def _in(self, commit: Commit, dataset: str) -> dict[str, NamedVersion]:
        """Returns the versions of a dataset that a commit holds."""
        if dataset not in commit.datasets:
            raise NotFound(
                f"{self.root} has no dataset {dataset!r}; it has: "
                f"{', '.join(sorted(commit.datasets)) or 'none'}"
                + (self._taken_out(dataset, commit) or did_you_mean(dataset, commit.datasets))
            )
        return {
            spec: NamedVersion(version, commit.number)
            for spec, version in commit.datasets[dataset].items()
        }

    def _taken_out(self, dataset: str, newest: Commit) -> str:
        """Says which of the last commits took a dataset out or renamed it; empty if none did."""
        later = newest
        try:
            for commit in islice(self.log(newest), LOOKED_BACK):
                if versions := commit.datasets.get(dataset):
                    wholes = {dataset, *(version.part_of for version in versions.values())}
                    for old, new in renamed_between(commit, later):
                        if old in wholes:
                            return f". Commit {later.number} renamed {old} to {new}"
                    whole = min(wholes - {dataset, ""}, default=dataset)  # it brings its parts back
                    return (
                        f". Commit {later.number} took it out; `vdna rollback {whole} --to "
                        f"{commit.number}` brings it back"
                    )
                later = commit
        except VdnaError:  # what is wrong with the log is no answer to a wrong name
            pass
        return ""

    def _numbered(self, number: int, newest: Commit) -> Commit | None:
        """Reads the commit of that number; None if there is none."""
        try:
            return newest if number == newest.number else self.commit(number)
        except NotFound:
            return None

    def _back(self, dataset: str, count: int, newest: Commit) -> dict[str, NamedVersion]:
        """Finds the version of each spec that a dataset had so many versions before."""
        found: dict[str, NamedVersion] = {}
        for spec in self._in(newest, dataset):
            distinct = _distinct(past_versions(self.log(newest), dataset, spec))
            for past in islice(distinct, count, count + 1):
                found[spec] = NamedVersion(past.version, past.last)
        if not found:
            raise self._no_version(f"{dataset}@-{count}", dataset, newest)
        return found

    def _window(
        self, name: str, dataset: str, commit: Commit, wanted: str
    ) -> dict[str, NamedVersion]:
        """Adds up the days of a window under each spec that has them and begins as is wanted."""
        from pipeline.catalogue.window_sums import window_version

        found: dict[str, NamedVersion] = {}
        problems: list[NotFound] = []
        specs = self._in(commit, dataset)
        for spec in (each for each in specs if each.startswith(wanted)):
            try:
                version = window_version(self, name, spec, commit)
            except NotFound as error:
                problems.append(error)
            else:
                found[spec] = NamedVersion(version, commit.number)
        if not found:
            raise (
                problems[0]
                if problems
                else NotFound(
                    f"{name}: {dataset} has no version under spec {wanted}; it has one under: "
                    f"{', '.join(sorted(specs))} (choose with {option('spec')})"
                )
            )
        return found

    def _tagged(self, dataset: str, tag: str, newest: Commit) -> dict[str, NamedVersion]:
        """Finds what a tag names; a part has the tags of the dataset that it is a part of."""
        parents = dataset.split("/")
        wholes = ["/".join(parents[:length]) for length in range(len(parents), 0, -1)]
        for whole in wholes:
            number = newest.tags.get(whole, {}).get(tag)
            if number is None:
                continue
            state = self.commit(number)
            # A whole may have been tagged before it had this part.
            versions = self._in(state, dataset) if dataset in state.datasets else {}
            own = {
                spec: named
                for spec, named in versions.items()
                if whole in (dataset, named.version.part_of)
            }
            if own:
                return own
        tags = sorted({each for whole in self.tagged_as(dataset, newest) for each in whole} - {tag})
        known = f"its tags are {some_of(tags)}" if tags else "it has no tag"
        raise self._no_version(f"{dataset}@{tag}", dataset, newest, f"{known}, ")

    def tagged_as(self, dataset: str, newest: Commit) -> list[Mapping[str, int]]:
        """Returns the tags of a dataset, and those of the dataset that it is a part of.

        Args:
            dataset: The dataset, or the part.
            newest: The state to look in.

        Returns:
            The number of the commit that each tag names, by the tag; none for a dataset without.
        """
        versions = newest.datasets.get(dataset, {}).values()
        wholes = {dataset, *(version.part_of for version in versions if version.part_of)}
        return [newest.tags[whole] for whole in sorted(wholes) if newest.tags.get(whole)]

    def _no_version(self, name: str, dataset: str, newest: Commit, tags: str = "") -> NotFound:
        """Returns the error that says which versions a dataset has lately had, the newest first."""
        made: set[tuple[str, int]] = set()
        here: dict[str, tuple[tuple[str, str], int]] = {}
        oldest = newest.number
        for commit in islice(self.log(newest), LOOKED_BACK):
            newer, here, oldest = here, {}, commit.number
            for spec, version in commit.datasets.get(dataset, {}).items():
                key = history_key(version)
                known, number = newer.get(spec, (None, 0))
                if known == key:
                    made.remove((spec, number))
                made.add((spec, oldest))
                here[spec] = key, oldest
        there = [f"{dataset}@{n}" for n in sorted({n for _, n in made})[::-1]]
        last = f"the last {LOOKED_BACK} commits" if oldest > 1 else ""
        if not there:
            never = f"{last} of {self.root} have no" if last else f"{self.root} never had a"
            return NotFound(f"there is no {name}: {never} dataset {dataset!r}")
        among = f" among {last}" if last else ""
        counts = "; @-1 is the one before the newest" if "@-" in name else ""
        return NotFound(
            f"there is no {name}; {tags}its versions{among} are {some_of(there)}{counts}"
        )


def _distinct(versions: Iterable[PastVersion]) -> Iterator[PastVersion]:
    """Leaves out a version that was taken out and came back: the newest time stands for both."""
    for _, same in groupby(versions, key=lambda past: past.identity):
        yield next(same)
