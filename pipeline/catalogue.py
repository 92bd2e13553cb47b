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
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import chain
from typing import TYPE_CHECKING, Any

from pipeline import storage
from pipeline.blocks import Data, footer_start, sha256
from pipeline.errors import (
    Conflict,
    CorruptFile,
    NoBucket,
    NotFound,
    SourceError,
    UsageError,
)
from pipeline.spec import Spec, digest_of

if TYPE_CHECKING:
    from mmap import mmap

    from pipeline.dna import DNA, DnaFile
    from pipeline.exemplars import Exemplars
    from pipeline.manifest import Manifest
    from pipeline.partial import Failure

FORMAT = 4
READS = (1, 2, 3, 4)
"""Commits of format 1 had no checksum, of format 2 no footers, of format 3 no parts."""
FILES = ("dna", "failures", "folds", "manifests")
"""What a built version is stored in, each in a folder of that name."""
KINDS = (*FILES, "layer_gaussians", "exemplars")
"""All folders of versions. A version's `sha256` says which of them it has a file in."""
ON_DISK = ("manifests", "layer_gaussians")
"""Files that grow with the dataset or are large: they are read into temporary ones, and mapped."""
IN_PART = ("dna", "folds", "layer_gaussians")
"""Files that are read by layer; of what each layer's bytes are, their footers say."""
_DIGEST = re.compile(r"[0-9a-f]{32}")
_FILE_NAME = re.compile(r"[A-Za-z0-9]+")
"""Of a file that a commit names: it leads nowhere else."""
_COMMIT_NAME = re.compile(r"\d{20}\.json")
LONGEST = 200
"""Characters between slashes of a part's name: a file's may have 255."""
_SEGMENT = re.compile(r"[A-Za-z0-9._-]+")


@dataclass(frozen=True)
class Footer:
    """Where the footer of a Parquet file begins, its size, and its sha256.

    The commit says so of it, and it of each layer: what is read of a file is known as the whole is.
    """

    start: int
    size: int
    sha256: str

    @classmethod
    def of(cls, data: Data, start: int = 0) -> Footer:
        """Of a file, or of what follows in it from `start` on."""
        with memoryview(data) as view, view[max(0, footer_start(data)) :] as footer:
            return cls(start + footer_start(data), footer.nbytes, sha256(footer))


def footers_of(files: Mapping[str, Data]) -> dict[str, Footer]:
    """Of those kinds of files that are read in part."""
    return {kind: Footer.of(files[kind]) for kind in IN_PART if kind in files}


@dataclass(frozen=True)
class Version:
    """One dataset version under one spec: its digests, totals, and the sha256 of its files.

    `footers`: of those that are read in part; none of versions of old, which are read whole.
    `numerics`: under which its images were counted, each with its number of `images`. `origin`: of
    an imported version, where it is from and what is not known of it; it has a DNA only, and no
    manifest. `by`: the label, or the number of folders, that a dataset has parts by; a part has it
    too, with the `value` that its images share, and the dataset that it is `part_of`.
    """

    dna: str
    manifest: str
    spec: str
    images: int
    failed: int
    products: tuple[str, ...]
    sha256: Mapping[str, str]
    source: str
    built: str
    software: str
    numerics: tuple[Mapping[str, Any], ...]
    origin: Mapping[str, Any] = field(default_factory=dict)
    footers: Mapping[str, Footer] = field(default_factory=dict)
    by: str = ""
    part_of: str = ""
    value: str = ""

    @property
    def imported(self) -> bool:
        return bool(self.origin)

    @property
    def provenance(self) -> str:
        """Of an imported version, for whoever reads its distances: whose word its spec is."""
        spec = "under a stated spec" if self.origin.get("stated") else "under its own spec"
        if self.origin.get("assumed"):
            spec = "its weights, ranges and preprocessing are assumed"
        return f"imported from {self.origin['file']} ({self.origin['software']}), {spec}"

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of an imported version should know."""
        return tuple(self.origin.get("notes", ()))

    def digest_in(self, kind: str) -> str:
        """What its file of a kind is named for."""
        return self.manifest if kind == "manifests" else self.dna

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Version:
        tuples = {name: tuple(data[name]) for name in ("products", "numerics")}
        footers = {kind: Footer(**stated) for kind, stated in data.get("footers", {}).items()}
        version = cls(**(dict(data) | tuples | {"footers": footers}))
        texts = [version.dna, version.manifest, version.spec, version.source, version.built]
        texts += [version.by, version.part_of, version.value]
        hashes = [version.sha256[kind] for kind in (("dna",) if version.imported else FILES)]
        hashes += [*version.sha256.values(), *(footer.sha256 for footer in footers.values())]
        if not set(version.sha256) <= set(KINDS):
            raise ValueError(f"files of unknown kinds: {sorted(version.sha256)}")
        if not footers.keys() <= version.sha256.keys() & set(IN_PART):
            raise ValueError(f"footers of files that have none: {sorted(footers)}")
        if not all(isinstance(text, str) for text in (*texts, *hashes, *version.products)):
            raise TypeError(f"digests and names must be text: {data}")
        counts = [version.images, version.failed]
        counts += [at for footer in footers.values() for at in (footer.start, footer.size)]
        if not all(type(count) is int and count >= 0 for count in counts):
            raise TypeError(f"images, failed and places must be numbers from 0 up: {data}")
        names = [version.dna, version.spec, *(() if version.imported else (version.manifest,))]
        for name in names:
            if not _FILE_NAME.fullmatch(name):
                raise ValueError(f"{name!r} names no file")
        return version


@dataclass(frozen=True)
class Commit:
    """One state of the catalogue. `datasets`: name -> spec digest -> version."""

    number: int
    time: str
    action: str
    default_spec: str | None
    datasets: Mapping[str, Mapping[str, Version]]
    software: str = field(default_factory=lambda: software())

    def encode(self) -> bytes:
        body = asdict(self) | {"format": FORMAT, "nonce": secrets.token_hex(16)}
        return canonical_json(body | {"checksum": digest_of(body)})

    @classmethod
    def decode(cls, data: bytes, name: str) -> Commit:
        try:
            body = json.loads(data)
            if body["format"] not in READS:
                raise CorruptFile(
                    f"{name}: format {body['format']}; this version of vdna reads "
                    f"{', '.join(map(str, READS))}"
                )
            checksum = body.pop("checksum") if body["format"] > 1 else digest_of(body)
            known = {"format", "nonce", *cls.__dataclass_fields__}
            if checksum != digest_of(body) or not body.keys() <= known:
                raise CorruptFile(f"{name}: its content is not what was written; restore the file")
            datasets = {
                check_name(dataset): {spec: _of_spec(spec, entry) for spec, entry in specs.items()}
                for dataset, specs in body["datasets"].items()
            }
            datetime.fromisoformat(body["time"])
            return cls(
                int(body["number"]),
                body["time"],
                body["action"],
                body["default_spec"],
                datasets,
                body["software"],
            )
        except (KeyError, TypeError, ValueError, AttributeError, UsageError) as error:
            raise CorruptFile(f"{name}: not a commit of a catalogue: {error!r}") from error


def _of_spec(spec: str, entry: Mapping[str, Any]) -> Version:
    version = Version.from_json(entry)
    if version.spec != spec:
        raise ValueError(f"a version under spec {spec} states {version.spec}")
    return version


EMPTY = Commit(0, "", "", None, {}, "")


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
            same = current is not None and _what(current) == _what(new)
            there = parts_of(head, dataset, new.spec)
            if (
                current is not None
                and same
                and current.sha256 == new.sha256
                and _stated(there) == _stated(parts)
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
                default_spec=new.spec if _takes_default(head, new) else head.default_spec,
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
        from pipeline.manifest import Manifest

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
        from pipeline.manifest import Manifest

        try:
            noted = storage.read(self.hint_uri(dataset, spec)).decode("ascii", "replace")
            plan = {} if _DIGEST.fullmatch(noted) else json.loads(noted)
            digest = str(plan["manifest"]) if plan else noted
            products = tuple(map(str, plan.get("products", ())))
        except (SourceError, ValueError, TypeError, KeyError, AttributeError):
            return None
        uri = self.uri("manifests", spec, dataset, digest)
        if not _DIGEST.fullmatch(digest) or not storage.exists(uri):
            return None
        manifest = Manifest.decode(storage.read_on_disk(uri), uri)
        if manifest.digest != digest:
            raise CorruptFile(f"{uri} holds the manifest {manifest.digest}; delete it, and rerun")
        return manifest, products

    def exemplars(self, name: str, version: Version) -> Exemplars:
        """Raises `NotFound` where the version has none, and as `read_checked`."""
        from pipeline.exemplars import Exemplars

        uri = self.uri("exemplars", version.spec, name, version.dna)
        data = self.read_checked("exemplars", name, version)
        return Exemplars.decode(data, uri, self.spec(version.spec))

    def failures(self, name: str, version: Version) -> list[Failure]:
        from pipeline.partial import decode_failures

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


def _takes_default(head: Commit, new: Version) -> bool:
    """The first spec that something was built under is the default; an imported one until then."""
    if head.default_spec is None:
        return True
    under = (specs.get(head.default_spec) for specs in head.datasets.values())
    return not new.imported and all(version is None or version.imported for version in under)


def software() -> str:
    return f"vdna-pipeline {version('vdna-pipeline')}"


def parts_of(commit: Commit, dataset: str, spec: str) -> dict[str, Version]:
    """The parts that a dataset has under a spec, by their names."""
    return {
        name: specs[spec]
        for name, specs in commit.datasets.items()
        if spec in specs and specs[spec].part_of == dataset
    }


def require_free(commit: Commit, name: str, whole: str) -> None:
    """Raises `Conflict` where a dataset of another kind has the name of a part."""
    for there in commit.datasets.get(name, {}).values():
        if there.part_of != whole:
            of = f"a part of {there.part_of}" if there.part_of else "a dataset of its own"
            raise Conflict(
                f"{name} is {of}, and would be a part of {whole}; build {whole} under another name"
            )


def require_own(commit: Commit, name: str) -> None:
    """Raises `Conflict` where the name is that of a part, under whatever spec."""
    for there in commit.datasets.get(name, {}).values():
        if there.part_of:
            raise Conflict(
                f"{name} is the part {there.value!r} of {there.part_of}; build {there.part_of}, or "
                "give another name"
            )


def _what(version: Version) -> tuple[str, str]:
    """What makes two builds of a dataset the same: of other parts they are not."""
    return version.dna, version.by


def _stated(parts: Mapping[str, Version]) -> dict[str, tuple[object, ...]]:
    return {name: (part.sha256, part.by, part.value) for name, part in parts.items()}


def part_name(dataset: str, value: str) -> str:
    """The name of a part: what no name may hold is a dash in it.

    Raises `UsageError` where nothing of the value is left, or more than a file may be named.
    """
    segments = [re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-") for text in value.split("/")]
    longest = max(map(len, segments))
    if longest > LONGEST:
        raise UsageError(
            f"the value {value[:40]!r}… makes a name of {longest} characters; a part's has "
            f"{LONGEST} at most, so give the images another label"
        )
    try:
        return check_name("/".join([dataset, *segments]))
    except UsageError as error:
        raise UsageError(
            f"the value {value!r} makes no name of a part of {dataset}; give the images another "
            "label"
        ) from error


def check_name(name: str, of: str = "dataset") -> str:
    """A dataset's, or a lens's, name: letters, digits, `.`, `_`, `-`, and `/` for grouping.

    Raises `UsageError` otherwise, with the name.
    """
    segments = name.split("/")
    if all(_SEGMENT.fullmatch(s) and s.strip(".") for s in segments):
        return name
    raise UsageError(
        f"{of} name {name!r}: use letters, digits, '.', '_', '-', and '/' between groups; no "
        "part may be empty or made of dots"
    )


def canonical_json(data: object) -> bytes:
    return json.dumps(data, sort_keys=True, indent=1).encode()
