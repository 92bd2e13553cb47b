"""One commit of a catalogue, and what the JSON file of the log holds of it: what it changes.

>>> StoredCommit.of(commit).encode()                                           # doctest: +SKIP
>>> StoredCommit.decode(data, "1.json").whole() == commit                      # doctest: +SKIP
True
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from importlib.metadata import version
from typing import Annotated, Any, Self, TypeVar

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError

from pipeline.buffers import Data, footer_start, sha256
from pipeline.catalogue.names import check_name
from pipeline.catalogue.receipts import Receipt
from pipeline.catalogue.version_names import check_tag
from pipeline.errors import CorruptFile, UsageError, wrong_fields
from pipeline.spec import HISTOGRAM, IMAGE_HASHES, digest_of

FORMAT = 4
"""Formats 2 and 3 are read as well: 2 had no tags, and neither had erasures. Format 1 was never
released, and is not read."""

READ_FORMATS = (2, 3, FORMAT)
"""The formats that are read."""

SPANS = (10, 100)
"""A commit whose number is a multiple of the last span holds all datasets. Any other one holds what
differs from the last multiple of the first span, or of the second if it is one of the first."""

FILES = ("dna", "failures", "folds", "manifests")
"""The files that every built version has. An imported one has a DNA only."""

VERSION_FILES = (*FILES, "layer_gaussians", "exemplars", IMAGE_HASHES)
"""The kinds of files that a version may have, each in a folder of that name."""

ON_DISK = ("layer_gaussians", IMAGE_HASHES)
"""Files that may be too large for memory: they are read into temporary files and mapped."""

IN_PART = ("dna", "folds", "layer_gaussians")
"""Files that can be read layer by layer; their footers state the sha256 of each layer's bytes."""

WholeNumber = Annotated[int, Field(strict=True, ge=0)]

FILE_NAME = r"[A-Za-z0-9]+"
"""The pattern of a name that cannot lead out of its folder."""

FileName = Annotated[str, Field(pattern=f"^{FILE_NAME}$")]

Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]

Held = TypeVar("Held")
"""What a commit holds of a dataset: its versions, the numbers of its tags, or what was replaced."""


@dataclass(frozen=True)
class Footer:
    """The footer of a Parquet file, as the commit states it.

    The commit vouches for the footer, and the footer for each layer, so that a layer read alone is
    checked as well as a whole file is.

    Attributes:
        start: Where the footer begins in the file, in bytes.
        size: Its size in bytes.
        sha256: The sha256 of its bytes.
    """

    start: WholeNumber
    size: WholeNumber
    sha256: str

    __pydantic_config__ = ConfigDict(extra="forbid")

    @classmethod
    def of(cls, data: Data, start: int = 0) -> Footer:
        """Finds the footer in the end of a file.

        Args:
            data: The file's bytes, all or the last ones.
            start: Where in the file `data` begins.

        Returns:
            The footer.
        """
        with memoryview(data) as view, view[max(0, footer_start(data)) :] as footer:
            return cls(start + footer_start(data), footer.nbytes, sha256(footer))


def footers_of(files: Mapping[str, Data]) -> dict[str, Footer]:
    """Finds the footers of those files that can be read layer by layer.

    Args:
        files: The bytes of a version's files, by kind.

    Returns:
        The footers, by kind.
    """
    return {kind: Footer.of(files[kind]) for kind in IN_PART if kind in files}


@dataclass(frozen=True)
class Version:
    """One version of a dataset under one spec.

    Attributes:
        dna: Digest of the DNA.
        manifest: Digest of the manifest; empty for an imported version, which has none.
        spec: Digest of the spec.
        images: Number of images counted.
        failed: Number of images that could not be read.
        products: What the build kept beside the histograms.
        sha256: The sha256 of each of the version's files, by kind.
        source: The url that the images are from.
        built: When it was built, as an ISO time.
        software: The name and version of the software that built it.
        numerics: The numerics that images were counted under, each with its number of `images`.
        origin: For an imported version, where it is from and what is not known of it.
        footers: The footers of those files that can be read layer by layer.
        by: The label, or the number of folders, by which the dataset is divided into parts.
        part_of: For a part, the dataset that it belongs to.
        value: For a part, the value of the label that its images share.
        transparent: Number of images with a pixel that is less than opaque; None if not noted.
        single_colour: Number of images of one colour; None if not noted.
        manifest_file: What the manifest's file is named for, if that is not its digest: an erasure
            has written the same manifest anew.
    """

    dna: FileName
    manifest: str
    spec: FileName
    images: WholeNumber
    failed: WholeNumber
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
    transparent: WholeNumber | None = None
    single_colour: WholeNumber | None = None
    manifest_file: Annotated[str, Field(pattern=f"^({FILE_NAME})?$")] = ""

    __pydantic_config__ = ConfigDict(extra="forbid")

    @property
    def key(self) -> str:
        """What tells the version from others of its dataset."""
        return f"{self.spec} {self.dna} {self.by}"

    @property
    def stated(self) -> tuple[str, str, str]:
        """What tells it from others, and from itself with its list of images in another file."""
        return self.dna, self.by, self.manifest_file

    @property
    def imported(self) -> bool:
        """Whether the version was imported, and not built here."""
        return bool(self.origin)

    @property
    def has_histograms(self) -> bool:
        """Whether it can be compared by its histograms. A file of Gaussians has none."""
        return not self.imported or HISTOGRAM in self.products

    @property
    def provenance(self) -> str:
        """Says where an imported version is from, and who vouches for its spec."""
        spec = "under a stated spec" if self.origin.get("stated") else "under its own spec"
        if self.origin.get("assumed"):
            spec = "its weights, ranges and preprocessing are assumed"
        return f"imported from {self.origin['file']} ({self.origin['software']}), {spec}"

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of an imported version should know."""
        return tuple(self.origin.get("notes", ()))

    def digest_in(self, kind: str) -> str:
        """Tells which digest the file of a kind is named for.

        Args:
            kind: One of `VERSION_FILES`.

        Returns:
            For a manifest its digest, or `manifest_file`; the digest of the DNA for all others.
        """
        return (self.manifest_file or self.manifest) if kind == "manifests" else self.dna

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Version:
        """Reads a version from the JSON of a commit.

        Args:
            data: The decoded JSON.

        Returns:
            The version.

        Raises:
            ValidationError: If a field is missing, unknown, or not what it must be (pydantic's).
        """
        return _VERSION.validate_python(data)


def _require_files(version: Version) -> Version:
    """Refuses a version that lacks a file or a footer, or has one of an unknown kind."""
    required = ("dna",) if version.imported else FILES
    if missing := sorted(set(required) - version.sha256.keys()):
        raise ValueError(f"the sha256 is missing of its files {', '.join(missing)}")
    if unknown := sorted(version.sha256.keys() - set(VERSION_FILES)):
        raise ValueError(f"it has files of unknown kinds: {', '.join(unknown)}")
    if odd := sorted(version.footers.keys() ^ (version.sha256.keys() & set(IN_PART))):
        raise ValueError(f"footers and files do not match: {', '.join(odd)}")
    if not version.imported and not re.fullmatch(FILE_NAME, version.manifest):
        raise ValueError(f"its manifest {version.manifest!r} names no file")
    return version


WholeVersion = Annotated[Version, AfterValidator(_require_files)]


@dataclass(frozen=True)
class Commit:
    """One state of a catalogue.

    Attributes:
        number: The commit's number; the first one is 1.
        time: When it was made, as an ISO time in UTC.
        action: What was done, such as `build photos`.
        default_spec: Digest of the spec that commands take where none is given.
        datasets: Each dataset's versions by the digest of their spec.
        previous: The sha256 of the bytes of the commit before this one; None for the first.
        software: The name and version of the software that made the commit.
        tags: The tags of each dataset, each with the number of the commit whose version it names.
            They stay when a dataset is taken out.
        replaced: For each dataset, the versions that erasures have replaced, by the texts of their
            `ReplacedKey`: what stands in the place of each, or None if nothing does. The versions
            of earlier commits are read by this.
        erasure: Number of the newest commit that erased images; 0 if none did.
        receipt: What this commit erased; None if it erased nothing.
    """

    number: WholeNumber
    time: str
    action: str
    default_spec: str | None
    datasets: Mapping[str, Mapping[str, WholeVersion]]
    previous: Sha256 | None
    software: str = field(default_factory=lambda: software())
    tags: Mapping[str, Mapping[str, WholeNumber]] = field(default_factory=dict)
    replaced: Mapping[str, Mapping[str, WholeVersion | None]] = field(default_factory=dict)
    erasure: WholeNumber = 0
    receipt: Receipt | None = None

    __pydantic_config__ = ConfigDict(extra="forbid")


def base_number(number: int) -> int:
    """Tells which commit's state the file of a commit builds upon.

    Args:
        number: The commit's number.

    Returns:
        The number of the other commit; 0 if the file holds all datasets.

    >>> [base_number(number) for number in (7, 10, 1995, 1990, 1900)]
    [0, 0, 1990, 1900, 0]
    """
    return next((number - number % span for span in SPANS if number % span), 0)


@dataclass(frozen=True)
class StoredCommit:
    """What the file of a commit holds.

    Attributes:
        stated: The commit, with no other datasets than those that differ from the base, each with
            all its versions, and the tags and replaced versions of those where they differ. What
            is gone has none.
        base: The sha256 of the bytes of the commit that it builds upon, whose number is
            `base_number`; None if that is 0.
    """

    stated: Commit
    base: str | None

    @classmethod
    def of(cls, commit: Commit, base: Commit | None = None, digest: str | None = None) -> Self:
        """Finds what a commit changes.

        Args:
            commit: The whole commit.
            base: The commit of number `base_number`; None if that is 0.
            digest: The sha256 of the bytes of the base.

        Returns:
            What its file will hold.
        """
        base = base or EMPTY
        changed = replace(
            commit,
            datasets=_changed(commit.datasets, base.datasets),
            tags=_changed(commit.tags, base.tags),
            replaced=_changed(commit.replaced, base.replaced),
        )
        return cls(changed, digest)

    def whole(self, base: Commit | None = None) -> Commit:
        """Returns the commit with all datasets and tags.

        Args:
            base: The commit that this one builds upon; None if its number is 0.
        """
        base = base or EMPTY
        return replace(
            self.stated,
            datasets=_put_over(base.datasets, self.stated.datasets),
            tags=_put_over(base.tags, self.stated.tags),
            replaced=_put_over(base.replaced, self.stated.replaced),
        )

    def encode(self) -> bytes:
        """Writes the file as JSON.

        A random nonce tells it from a commit of the same content, so that a writer whose answer
        was lost recognises its own.

        Returns:
            The bytes of the file.
        """
        extra = {"base": self.base, "format": FORMAT, "nonce": secrets.token_hex(16)}
        body = asdict(self.stated) | extra
        return canonical_json(body | {"checksum": digest_of(body)})

    @classmethod
    def decode(cls, data: bytes, name: str) -> Self:
        """Reads the file of a commit.

        Args:
            data: The bytes.
            name: How errors name the file.

        Returns:
            What the file holds.

        Raises:
            CorruptFile: If the file is torn or changed, of an unknown format, or if one of its
                fields is not what it must be.
        """
        try:
            body = json.loads(data)
            if body["format"] not in READ_FORMATS:
                raise CorruptFile(
                    f"{name}: format {body['format']}; this version of vdna reads "
                    f"{READ_FORMATS[0]} to {FORMAT}. Read the catalogue with the version that "
                    "wrote it, or build it again in another folder"
                )
            checksum = body.pop("checksum")
            if checksum != digest_of(body):
                raise CorruptFile(f"{name}: its content is not what was written; restore the file")
            del body["format"], body["nonce"]
            base = _BASE.validate_python(body.pop("base"))
            commit = _COMMIT.validate_python(body)
            _require_sound(commit, base, name)
        except ValidationError as error:
            raise CorruptFile(
                f"{name}: not a commit: {wrong_fields(error)}; restore the file"
            ) from error
        except (LookupError, TypeError, ValueError, RecursionError, UsageError) as error:
            raise CorruptFile(f"{name}: not a commit: {error!r}; restore the file") from error
        return cls(commit, base)


def _changed(
    now: Mapping[str, Mapping[str, Held]], before: Mapping[str, Mapping[str, Held]]
) -> dict[str, Mapping[str, Held]]:
    """Finds what differs of each dataset. A dataset that is gone holds nothing."""
    names = sorted(now.keys() | before.keys())
    return {name: now.get(name, {}) for name in names if now.get(name) != before.get(name)}


def _put_over(
    before: Mapping[str, Mapping[str, Held]], changed: Mapping[str, Mapping[str, Held]]
) -> dict[str, Mapping[str, Held]]:
    """Puts what differs, as `_changed` found it, over what was there before."""
    return {name: held for name, held in {**before, **changed}.items() if held}


def _require_sound(commit: Commit, base: str | None, name: str) -> None:
    """Refuses a file whose fields contradict each other."""
    datetime.fromisoformat(commit.time)
    if (commit.previous is None) != (commit.number == 1):
        raise CorruptFile(
            f"{name}: commit {commit.number} names {commit.previous or 'no commit'} as the "
            "one before it; the first commit alone names none. Restore the file"
        )
    number = base_number(commit.number)
    if (base is None) != (number == 0):
        raise CorruptFile(
            f"{name}: commit {commit.number} builds upon {base or 'no commit'}; it must build upon "
            f"{f'commit {number}' if number else 'none'}. Restore the file"
        )
    for dataset, tags in commit.tags.items():
        check_name(dataset)
        for tag, tagged in tags.items():
            check_tag(tag)
            if not 0 < tagged < commit.number:
                raise CorruptFile(
                    f"{name}: {dataset}@{tag} names commit {tagged}, which is not before commit "
                    f"{commit.number}. Restore the file"
                )
    if (commit.erasure == commit.number) != (commit.receipt is not None):
        raise CorruptFile(
            f"{name}: commit {commit.number} states commit {commit.erasure} as the newest erasure, "
            f"and {'no' if commit.receipt is None else 'a'} receipt of one. Restore the file"
        )
    for dataset in commit.replaced:
        check_name(dataset)
    for dataset, versions in commit.datasets.items():
        check_name(dataset)
        for spec, stated in versions.items():
            if stated.spec != spec:
                raise CorruptFile(
                    f"{name}: {dataset} has a version under spec {spec} that states spec "
                    f"{stated.spec}"
                )


_VERSION = TypeAdapter[Version](WholeVersion)

_COMMIT = TypeAdapter(Commit)

_BASE = TypeAdapter[str | None](Sha256 | None)

EMPTY = Commit(0, "", "", None, {}, None, "")
"""The state of a catalogue without commits."""


def software() -> str:
    """Returns the name and version of this software, as commits and files state it."""
    return f"vdna-pipeline {version('vdna-pipeline')}"


def canonical_json(data: object) -> bytes:
    """Writes JSON that is the same for the same data.

    Args:
        data: What JSON can hold.

    Returns:
        The bytes, with sorted keys.
    """
    return json.dumps(data, sort_keys=True, indent=1).encode()
