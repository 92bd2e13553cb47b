"""The catalogue: a numbered commit log over immutable DNAs.

    >>> c = Catalogue("s3://bucket/dnas")                        # doctest: +SKIP
    >>> c.load("cityscapes").images, c.names()

Each commit `_log/<number>.json` holds the whole map (dataset, spec) -> version, and is created
exclusively, so that two writers cannot both be number 42. `_log/_latest` is a hint to start
looking from. Whatever is not named by a commit is not in the catalogue, whatever lies under the
root.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from itertools import chain
from typing import TYPE_CHECKING

from pipeline import storage
from pipeline.buffers import sha256
from pipeline.catalogue.commit import (
    DIGEST,
    EMPTY,
    ON_DISK,
    Commit,
    Footer,
    Version,
    canonical_json,
    parts_of,
    require_free,
    require_own,
    software,
    stated_parts,
    takes_default_spec,
    what_was_built,
)
from pipeline.errors import Conflict, CorruptFile, NoBucket, NotFound, SourceError, UsageError
from pipeline.spec import Spec, digest_of

if TYPE_CHECKING:
    from mmap import mmap

    from pipeline.dna import DNA, DnaFile, Exemplars, Failure
    from pipeline.sources import Manifest

_COMMIT_NAME = re.compile(r"\d{20}\.json")


class Catalogue:
    """A place for DNAs. Making one does no I/O; it comes to be with its first commit."""

    def __init__(self, root: str) -> None:
        self.root = storage.canonical(root)

    # Where things are.

    def uri(self, kind: str, spec: str, dataset: str, digest: str) -> str:
        """Of an object of one of the `KINDS`."""
        return storage.join(self.root, kind, spec, dataset, f"{digest}.parquet")

    def ranges_uri(self, digest: str) -> str:
        return storage.join(self.root, "ranges", f"{digest}.parquet")

    def spec_uri(self, digest: str) -> str:
        return storage.join(self.root, "specs", f"{digest}.json")

    def work_uri(self, dataset: str, spec: str) -> str:
        return storage.join(self.root, "_work", dataset, spec)

    def partials_uri(self, name: str, version: Version) -> str:
        """The work folder that has the version's partials: a part's are those of the whole."""
        return self.work_uri(version.part_of or name, version.spec)

    def listing_uri(self, digest: str) -> str:
        """Where parts of a listing are kept until it is a plan."""
        return storage.join(self.root, "_work", "_listings", digest)

    @property
    def archives_uri(self) -> str:
        """Where the contents of archives are kept, so that each is looked into once."""
        return storage.join(self.root, "_work", "_archives")

    def ranks_uri(self, digest: str) -> str:
        """Where shards of images are kept that were ranked in one way, until `gc`."""
        return storage.join(self.root, "_work", "_ranks", digest)

    def hint_uri(self, dataset: str, spec: str) -> str:
        """Where a build notes the digest of the plan that it begins."""
        return storage.join(self.work_uri(dataset, spec), "_plan")

    def matrix_uri(self, spec: str, members: Mapping[str, str], lens: str) -> str:
        """`members`: dataset -> dna digest."""
        digest = digest_of("members", dict(members))
        return storage.join(self.matrices_uri(spec), digest, f"{lens}.parquet")

    def matrices_uri(self, spec: str) -> str:
        return storage.join(self.root, "matrix", spec)

    def lenses_uri(self, name: str = "") -> str:
        """Where a lens of that name is kept, each version under its digest; or all of them."""
        return storage.join(self.root, "lenses", *([name] if name else []))

    def log_uri(self, number: int) -> str:
        return storage.join(self.root, "_log", f"{number:020d}.json")

    @property
    def _hint_uri(self) -> str:
        return storage.join(self.root, "_log", "_latest")

    # The log.

    def head(self) -> Commit:
        """The newest commit; `EMPTY` where there is none yet."""
        number = self._hint() or self._last()
        while storage.exists(self.log_uri(number + 1)):
            number += 1
        return self.commit(number) if number else EMPTY

    def commit(self, number: int) -> Commit:
        """Raises `NotFound` where the log has no such number."""
        uri = self.log_uri(number)
        try:
            commit = Commit.decode(storage.read(uri), uri)
        except SourceError as error:
            raise NotFound(f"{self.root} has no commit {number}") from error
        if commit.number != number:
            raise CorruptFile(f"{uri} states number {commit.number}")
        return commit

    def log(self) -> Iterator[Commit]:
        """Newest first."""
        for number in range(self.head().number, 0, -1):
            try:
                yield self.commit(number)
            except NotFound as error:
                raise _gap(self.log_uri(number)) from error

    def _hint(self) -> int:
        try:
            number = int(storage.read(self._hint_uri))
        except NoBucket:  # a slip of the pen, not a catalogue that is still empty
            raise
        except (SourceError, ValueError):
            return 0
        return number if number > 0 and storage.exists(self.log_uri(number)) else 0

    def _last(self) -> int:
        """The number that the log ends with, by one listing; 0 where there is none.

        Raises `CorruptFile` where one before it is missing: what follows the gap must not be
        written over.
        """
        try:
            names = [item.uri.rpartition("/")[2] for item in storage.walk(f"{self.root}/_log")]
        except SourceError:
            return 0
        numbers = sorted(int(name[:20]) for name in names if _COMMIT_NAME.fullmatch(name))
        for expected, number in enumerate(numbers, 1):
            if number != expected:
                raise _gap(self.log_uri(expected))
        return len(numbers)

    def append(self, action: str, change: Callable[[Commit], Commit]) -> Commit:
        """Commit `change(head)`, again on a newer head if another writer was quicker.

        `change` may raise to refuse; a head returned as it was is no commit.
        """
        while True:
            head = self.head()
            changed = change(head)
            if changed is head:
                return head
            commit = replace(
                changed,
                number=head.number + 1,
                time=datetime.now(UTC).isoformat(timespec="seconds"),
                action=action,
                software=software(),
            )
            if storage.create(self.log_uri(commit.number), commit.encode()):
                storage.replace(self._hint_uri, str(commit.number).encode())
                return commit

    def put_version(
        self,
        dataset: str,
        new: Version,
        base: Version | None,
        action: str = "build",
        parts: Mapping[str, Version] | None = None,
    ) -> Commit:
        """Make `new` the dataset's version under its spec, and `parts` all the parts that it has.

        `base`: the version that the caller built upon. Raises `Conflict` where another writer has
        replaced that one by a version other than `new`, or given a name away, to a part or of one.
        """
        parts = parts or {}

        def change(head: Commit) -> Commit:
            require_own(head, dataset)
            current = head.datasets.get(dataset, {}).get(new.spec)
            same = current is not None and what_was_built(current) == what_was_built(new)
            there = parts_of(head, dataset, new.spec)
            if (
                current is not None
                and same
                and current.sha256 == new.sha256
                and stated_parts(there) == stated_parts(parts)
            ):
                return head
            if current != base and not same:
                raise Conflict(
                    f"{dataset}: another job committed {current.dna if current else 'nothing'} "
                    f"while this one built upon {base.dna if base else 'nothing'}; rerun to look "
                    "at the source again"
                )
            for name in sorted(parts.keys() - there.keys()):
                require_free(head, name, dataset)
            datasets = {
                name: {s: v for s, v in specs.items() if s != new.spec or name not in there}
                for name, specs in head.datasets.items()
            }
            for name, its in {**parts, dataset: new}.items():
                datasets[name] = {**datasets.get(name, {}), new.spec: its}
            return replace(
                head,
                default_spec=new.spec if takes_default_spec(head, new) else head.default_spec,
                datasets={name: specs for name, specs in datasets.items() if specs},
            )

        return self.append(f"{action} {dataset}", change)

    # Reading.

    def at(self, at: int | str | None = None) -> Commit:
        """A state of the catalogue: the newest, by number, or as of an ISO date or time (UTC)."""
        if at is None:
            return self.head()
        if isinstance(at, int) or at.isdecimal():
            return self.commit(int(at))
        try:
            moment = datetime.fromisoformat(at)
        except ValueError as error:
            raise UsageError(f"at is {at!r}; give a commit's number or an ISO time") from error
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        for commit in self.log():
            if datetime.fromisoformat(commit.time) <= moment:
                return commit
        raise NotFound(f"{self.root} has no commit as old as {at}")

    def names(self, at: int | str | None = None, spec: str | None = None) -> list[str]:
        """Datasets that have a version under the spec (the default one where none is given)."""
        commit = self.at(at)
        if not commit.datasets:
            return []
        chosen = self.spec_digest(commit, spec)
        return sorted(name for name, specs in commit.datasets.items() if chosen in specs)

    def spec_digest(self, commit: Commit, prefix: str | None = None) -> str:
        """The spec that a prefix of its digest names; the catalogue's default for None."""
        known = sorted({spec for specs in commit.datasets.values() for spec in specs})
        if prefix is None:
            if commit.default_spec is None:
                raise NotFound(f"{self.root} holds no dataset yet")
            return commit.default_spec
        found = [spec for spec in known if spec.startswith(prefix)]
        if len(found) != 1:
            raise NotFound(
                f"{len(found)} specs of {self.root} begin with {prefix!r}; there are: "
                f"{', '.join(known) or 'none'}"
            )
        return found[0]

    def find(self, name: str, at: int | str | None = None, spec: str | None = None) -> Version:
        """The dataset's version under the spec (its only one, or the default, where none is given).

        Raises `NotFound`, naming what there is.
        """
        return self._find(self.at(at), name, spec)

    def find_all(
        self, names: Iterable[str], at: int | str | None = None, spec: str | None = None
    ) -> dict[str, Version]:
        """The same of many, of one commit that is read once."""
        commit = self.at(at)
        return {name: self._find(commit, name, spec) for name in names}

    def _find(self, commit: Commit, name: str, spec: str | None) -> Version:
        if name not in commit.datasets:
            raise NotFound(
                f"{self.root} has no dataset {name!r}; it has: "
                f"{', '.join(sorted(commit.datasets)) or 'none'}"
            )
        versions = commit.datasets[name]
        if spec is None and len(versions) == 1:
            return next(iter(versions.values()))
        digest = self.spec_digest(commit, spec)
        if digest not in versions:
            raise NotFound(
                f"{name} has no version under spec {digest}; it has one under: "
                f"{', '.join(sorted(versions))} (choose with --spec)"
            )
        return versions[digest]

    def load(
        self,
        name: str,
        *,
        at: int | str | None = None,
        spec: str | None = None,
        layers: Sequence[str] | None = None,
        layer_gaussian: bool = False,
    ) -> DNA:
        """A dataset's DNA, of `layers` only where given; what is read of its file is checked.

        `layer_gaussian`: with its layers' scatter matrices, which are a file of their own. Raises
        `NotFound` where it was built without.
        """
        version = self.find(name, at, spec)
        return self.load_version(name, version, layers, layer_gaussian=layer_gaussian)

    def load_version(
        self,
        name: str,
        version: Version,
        layers: Sequence[str] | None = None,
        *,
        layer_gaussian: bool = False,
    ) -> DNA:
        dna = self.open_file("dna", name, version, layers).read(layers)
        if not layer_gaussian:
            return dna
        return self.open_file("layer_gaussians", name, version, layers).read_gaussians(dna)

    def open_file(
        self,
        kind: str,
        name: str,
        version: Version,
        layers: Sequence[str] | None = None,
        *,
        on_disk: bool = False,
    ) -> DnaFile:
        """A version's DNA, folds or layer Gaussians, to be read by layer; the last lie on disk,
        and the others where that is asked for.

        `layers`: those that will be read of it. Where they are not all, these alone are fetched and
        checked, and lie on disk; a version of old is fetched whole.

        Raises `CorruptFile` where it is of another dataset or version, whatever the commit says.
        """
        from pipeline.dna import DnaFile

        uri = self.uri(kind, version.spec, name, version.dna)
        footer = version.footers.get(kind)
        file = None
        if footer is not None and layers is not None:
            file = _open_part(uri, kind, footer, layers)
        if file is None:
            data = self.read_checked(kind, name, version)
            file = DnaFile(storage.on_disk(data) if on_disk else data, kind, uri)
            if footer is not None:
                _require_footer(uri, Footer.of(data), footer)
        dataset = file.metadata.get("dataset")
        if (dataset, file.spec.digest) != (name, version.spec):
            raise CorruptFile(
                f"{uri} is of {dataset} under spec {file.spec.digest}, not of {name} under "
                f"{version.spec}"
            )
        committed = {
            "digest": version.dna,
            "manifest": version.manifest,
            "images": version.images,
            "failed": version.failed,
        }
        for stated, value in committed.items():
            if file.metadata.get(stated) != value:
                raise CorruptFile(
                    f"{uri} states {stated} {file.metadata.get(stated)}; {value} was committed"
                )
        return file

    def manifest(self, name: str, version: Version) -> Manifest:
        from pipeline.sources import Manifest

        uri = self.uri("manifests", version.spec, name, version.manifest)
        manifest = Manifest.decode(self.read_checked("manifests", name, version), uri)
        if manifest.digest != version.manifest:
            raise CorruptFile(f"{uri} holds the manifest {manifest.digest}")
        return manifest

    def note_plan(self, dataset: str, spec: str, manifest: str, products: Sequence[str]) -> None:
        """Of a build that begins: what `planned` tells."""
        plan = {"manifest": manifest, "products": list(products)}
        storage.replace(self.hint_uri(dataset, spec), canonical_json(plan))

    def planned(self, dataset: str, spec: str) -> tuple[Manifest, tuple[str, ...]] | None:
        """The plan last begun, committed or not, and the products it keeps (none where an earlier
        version of vdna has noted it). None where nothing readable is noted.
        """
        from pipeline.sources import Manifest

        try:
            noted = storage.read(self.hint_uri(dataset, spec)).decode("ascii", "replace")
            plan = {} if DIGEST.fullmatch(noted) else json.loads(noted)
            digest = str(plan["manifest"]) if plan else noted
            products = tuple(map(str, plan.get("products", ())))
        except (SourceError, ValueError, TypeError, KeyError, AttributeError):
            return None
        uri = self.uri("manifests", spec, dataset, digest)
        if not DIGEST.fullmatch(digest) or not storage.exists(uri):
            return None
        manifest = Manifest.decode(storage.read_on_disk(uri), uri)
        if manifest.digest != digest:
            raise CorruptFile(f"{uri} holds the manifest {manifest.digest}; delete it, and rerun")
        return manifest, products

    def exemplars(self, name: str, version: Version) -> Exemplars:
        """Raises `NotFound` where the version has none, and as `read_checked`."""
        from pipeline.dna import Exemplars

        uri = self.uri("exemplars", version.spec, name, version.dna)
        data = self.read_checked("exemplars", name, version)
        return Exemplars.decode(data, uri, self.spec(version.spec))

    def failures(self, name: str, version: Version) -> list[Failure]:
        from pipeline.dna import decode_failures

        uri = self.uri("failures", version.spec, name, version.dna)
        failures = decode_failures(self.read_checked("failures", name, version), uri)
        if len(failures) != version.failed:
            raise CorruptFile(
                f"{uri}: {len(failures)} failures are listed, {version.failed} were committed"
            )
        return failures

    def read_checked(self, kind: str, name: str, version: Version) -> bytes | mmap:
        """One of a version's files; those of `ON_DISK` are mapped.

        Raises `CorruptFile` unless it is the one committed, and `NotFound` where the version has
        none of that kind.
        """
        if kind not in version.sha256:
            asked = {"layer_gaussians": "--layer-gaussian", "exemplars": "--exemplars 8"}
            why = "it was imported" if version.imported else f"build it with {asked[kind]}"
            raise NotFound(f"{name} has no {kind.replace('_', ' ')}: {why}")
        uri = self.uri(kind, version.spec, name, version.digest_in(kind))
        data = storage.read_on_disk(uri) if kind in ON_DISK else storage.read(uri)
        found = sha256(data)
        if found != version.sha256[kind]:
            raise CorruptFile(
                f"{uri} has sha256 {found}; {version.sha256[kind]} was committed. Restore it, or "
                "delete it and build the dataset again"
            )
        return data

    def spec(self, digest: str) -> Spec:
        uri = self.spec_uri(digest)
        try:
            spec = Spec.from_json(json.loads(storage.read(uri)))
        except (ValueError, TypeError, CorruptFile, UsageError) as error:
            raise CorruptFile(f"{uri}: not a spec: {error}") from error
        if spec.digest != digest:
            raise CorruptFile(f"{uri} holds spec {spec.digest}")
        return spec


def _open_part(uri: str, kind: str, stated: Footer, layers: Sequence[str]) -> DnaFile | None:
    """The file with these layers only; None where they are all, or it states no digests of them.

    What holds two reads together are the digests: the same bytes put anew meanwhile are the same.
    """
    from pipeline.dna import DnaFile

    tail = storage.read_range(uri, stated.start, stated.size)
    _require_footer(uri, Footer.of(tail, stated.start), stated)
    head = DnaFile(tail, kind, uri, start=stated.start)
    if not head.row_groups or set(layers) >= set(head.spec.layers):
        return None
    parts = storage.read_spans(uri, [head.span(layer) for layer in layers])
    data = storage.sparse(stated.start + stated.size, chain([(stated.start, tail)], parts))
    return DnaFile(data, kind, uri, layers=layers)


def _require_footer(uri: str, found: Footer, stated: Footer) -> None:
    if found != stated:
        raise CorruptFile(
            f"{uri}: its footer has sha256 {found.sha256}, at {found.start}; {stated.sha256}, at "
            f"{stated.start}, was committed. Restore it, or delete it and build the dataset again"
        )


def _gap(uri: str) -> CorruptFile:
    return CorruptFile(
        f"{uri} is missing, and later commits are there: the log has a gap. Restore it from a "
        "version or a copy of the bucket"
    )
