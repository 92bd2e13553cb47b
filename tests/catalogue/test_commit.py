"""A commit is refused unless each version in it has what it must have, and nothing else."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Callable
from mmap import mmap
from typing import Any

import pytest

from pipeline import storage
from pipeline.catalogue import Catalogue, Commit, Version
from pipeline.catalogue.commit import Footer, StoredCommit
from pipeline.errors import CorruptFile
from tests.support.builders import sealed

DATA = b"the bytes of a file"
KINDS = (
    "dna",
    "failures",
    "folds",
    "manifests",
    "layer_gaussians",
    "exemplars",
    "image_hashes",
)
IN_PART = ("dna", "folds", "layer_gaussians")


def version(**fields: Any) -> Version:
    whole: dict[str, Any] = {
        "dna": "d",
        "manifest": "m",
        "spec": "s",
        "images": 3,
        "failed": 0,
        "products": ("histogram",),
        "sha256": dict.fromkeys(KINDS, hashlib.sha256(DATA).hexdigest()),
        "footers": dict.fromkeys(IN_PART, Footer(0, 1, "x")),
        "source": "src",
        "built": "2026-01-01T00:00:00+00:00",
        "software": "vdna",
        "numerics": (),
    }
    return Version(**(whole | fields))


def commit_of(of: Version) -> bytes:
    commit = Commit(1, "2026-01-01", "build a", "s", {"a": {"s": of}}, None)
    return StoredCommit.of(commit).encode()


def test_a_version_with_every_kind_of_file_is_read_back() -> None:
    commit = StoredCommit.decode(commit_of(version()), "c").whole()
    assert commit.datasets["a"]["s"] == version()


def drop(field: str, kind: str) -> Callable[[dict[str, Any]], object]:
    return lambda body: body[field].pop(kind)


REFUSED: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    **{
        f"no {kind}": (drop("sha256", kind), f"the sha256 is missing of its files {kind}")
        for kind in ("dna", "failures", "folds", "manifests")
    },
    **{
        f"no footer of {kind}": (drop("footers", kind), f"footers and files do not match: {kind}")
        for kind in IN_PART
    },
    "an unknown kind": (lambda body: body["sha256"].update(cats="00"), "unknown kinds: cats"),
    "a footer of a file that has none": (
        lambda body: body["footers"].update(failures=body["footers"]["dna"]),
        "footers and files do not match: failures",
    ),
    "a manifest that names no file": (lambda body: body.update(manifest="a/b"), "names no file"),
    "no manifest": (lambda body: body.update(manifest=""), "names no file"),
    "an unknown field": (lambda body: body.update(cats=1), "cats"),
    "an unknown field of a footer": (lambda body: body["footers"]["dna"].update(cats=1), "cats"),
}


@pytest.mark.parametrize("how", REFUSED)
def test_a_version_that_is_not_what_it_must_be_is_refused(how: str) -> None:
    change, says = REFUSED[how]
    body = json.loads(commit_of(version()))
    change(body["datasets"]["a"]["s"])
    with pytest.raises(CorruptFile, match=rf"c: not a commit: .*{says}.*; restore the file"):
        StoredCommit.decode(sealed(body), "c")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda body: body.update(time="now"), "not a commit"),
        (lambda body: body["datasets"].update({"../x": body["datasets"]["a"]}), r"\.\./x"),
        (lambda body: body["datasets"]["a"]["s"].update(spec="t"), "under spec s .*states spec t"),
        (lambda body: body.update(cats=1), "cats"),
        (lambda body: body.update(number=-1), "number"),
    ],
)
def test_a_commit_that_is_not_what_it_must_be_is_refused(
    change: Callable[[dict[str, Any]], object], says: str
) -> None:
    body = json.loads(commit_of(version()))
    change(body)
    with pytest.raises(CorruptFile, match=f"c: .*{says}"):
        StoredCommit.decode(sealed(body), "c")


def test_two_commits_of_one_content_differ() -> None:
    """So a writer whose answer was lost recognises its own."""
    assert commit_of(version()) != commit_of(version())


def test_an_imported_version_needs_a_dna_alone() -> None:
    alone = version(
        sha256={"dna": "00"},
        footers={"dna": Footer(0, 1, "x")},
        manifest="",
        origin={"software": "vdna 0.1.1", "file": "x.npz"},
    )
    assert StoredCommit.decode(commit_of(alone), "c").stated.datasets["a"]["s"] == alone


@pytest.mark.parametrize(
    ("known", "says"),
    [
        ({}, "under its own spec"),
        ({"stated": True}, "under a stated spec"),
        ({"assumed": True}, "its weights, ranges and preprocessing are assumed"),
    ],
)
def test_where_an_imported_version_is_from_is_said(known: dict[str, bool], says: str) -> None:
    origin = {"software": "vdna 0.1.1", "file": "x.npz"} | known
    assert version(origin=origin).provenance == f"imported from x.npz (vdna 0.1.1), {says}"


@pytest.mark.parametrize("kind", KINDS)
def test_files_that_may_be_too_large_for_memory_are_mapped(kind: str) -> None:
    place = Catalogue(f"memory://{uuid.uuid4().hex}")
    of = version()
    storage.create(place.uri(kind, "s", "a", of.digest_in(kind)), DATA)
    read = place.read_checked(kind, "a", of)
    assert bytes(read) == DATA
    assert isinstance(read, mmap) == (kind in {"layer_gaussians", "image_hashes"})
