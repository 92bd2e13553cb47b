"""catalogue.commit: TODO-DOC"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from importlib.metadata import version
from typing import Any

from pipeline.buffers import Data, footer_start, sha256
from pipeline.catalogue.names import check_name
from pipeline.errors import Conflict, CorruptFile, UsageError
from pipeline.spec import digest_of

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

DIGEST = re.compile(r"[0-9a-f]{32}")

_FILE_NAME = re.compile(r"[A-Za-z0-9]+")
"""Of a file that a commit names: it leads nowhere else."""


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


def takes_default_spec(head: Commit, new: Version) -> bool:
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


def what_was_built(version: Version) -> tuple[str, str]:
    """What makes two builds of a dataset the same: of other parts they are not."""
    return version.dna, version.by


def stated_parts(parts: Mapping[str, Version]) -> dict[str, tuple[object, ...]]:
    return {name: (part.sha256, part.by, part.value) for name, part in parts.items()}


def canonical_json(data: object) -> bytes:
    return json.dumps(data, sort_keys=True, indent=1).encode()
