"""Tests that verify finds every kind of tampering by the right check, and blames nothing else."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import storage
from pipeline.building import Request, build_datasets
from pipeline.catalogue import Catalogue, Finding, Verification, Version, footers_of, verify
from pipeline.counting import partial_uri, reduction
from pipeline.dna import DnaFile, Failure, Partial, Ranges, encode_dna, encode_layers, to_table
from pipeline.engine import InProcess
from pipeline.errors import CorruptFile, NotFound, VdnaError
from pipeline.networks import encode_ranges
from pipeline.sources import Entries, Manifest, Shard, plan
from pipeline.spec import PRODUCTS
from tests.golden.handmade import (
    NETWORK,
    RANGES,
    SPEC,
    commit_dataset,
    encode_failures,
    entries,
    hand_made,
    put_entries,
)
from tests.support.builders import (
    OTHER_NUMERICS,
    decode_dna,
    random_dna,
    sealed,
    tiny_spec,
    with_digest,
    write_photos,
)

CHECKS = [
    "spec",
    "counts",
    "manifest",
    "failures",
    "folds",
    "exemplars",
    "image hashes",
    "partials",
]
NAME = "photos"


class Copy:
    """A copy of a catalogue to forge: its only version, its files, and its commit."""

    def __init__(self, catalogue: Catalogue) -> None:
        self.catalogue = catalogue
        self.version: Version = catalogue.find(NAME)

    def uri(self, kind: str) -> str:
        v = self.version
        digest = v.manifest if kind == "manifests" else v.dna
        return self.catalogue.uri(kind, v.spec, NAME, digest)

    def read(self, kind: str) -> bytes:
        return storage.read(self.uri(kind))

    @property
    def spec_uri(self) -> str:
        return self.catalogue.spec_uri(self.version.spec)

    @property
    def ranges_uri(self) -> str:
        return self.catalogue.ranges_uri(self.catalogue.spec(self.version.spec).ranges_digest)

    @property
    def partials(self) -> list[str]:
        """Returns the uris of the partials, in the order of the manifest."""
        work = self.catalogue.work_uri(NAME, self.version.spec)
        manifest = manifest_of(self)
        keys = manifest.keys(self.version.spec, self.version.products)
        return [partial_uri(work, key) for key in keys]

    def forge_commit(self, **changes: Any) -> None:
        """Lets the commit state something else about the version."""
        uri = self.catalogue.log_uri(self.catalogue.head().number)
        body = json.loads(storage.read(uri))
        body["datasets"][NAME][self.version.spec] |= changes
        storage.replace(uri, sealed(body))

    def put(self, kind: str, data: bytes) -> None:
        """Replaces a file, and lets the commit state the digest of the new bytes."""
        storage.replace(self.uri(kind), data)
        version = self.catalogue.find(NAME)
        kept = dict(version.footers)
        kept |= footers_of({kind: data} if data[-4:] == b"PAR1" else {})
        self.forge_commit(
            sha256={**version.sha256, kind: hashlib.sha256(data).hexdigest()},
            footers={of: asdict(footer) for of, footer in kept.items()},
        )

    def change_partial(self, index: int, change: Callable[[Partial], Partial]) -> None:
        uri = self.partials[index]
        storage.replace(uri, change(Partial.decode(storage.read(uri), uri)).encode())


def copied(source: Path, folder: Path) -> Copy:
    shutil.copytree(source, folder)
    return Copy(Catalogue(str(folder)))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Makes 20 photos and a bad one, in 16 shards, with hand-made counts, the same on every run."""
    folder = tmp_path_factory.mktemp("built") / "catalogue"
    first, *others = entries(NAME, 21)
    bad = replace(first, uri="s3://bucket/photos/bad.jpg")
    manifest = plan([bad, *others])
    partials = [hand_made(shard) for shard in manifest.shards]
    version = commit_dataset(Catalogue(str(folder)), NAME, manifest, partials)
    assert version.failed == 1
    return folder


@pytest.fixture
def copy(built: Path, tmp_path: Path) -> Copy:
    return copied(built, tmp_path / "copy")


def run(copy: Copy) -> dict[str, Finding]:
    findings = list(verify(copy.catalogue))
    optional = {"exemplars", "image_hashes"} - copy.version.sha256.keys()
    left_out = {kind.replace("_", " ") for kind in optional}
    assert [finding.check for finding in findings] == [
        check for check in CHECKS if check not in left_out
    ]
    assert all(finding.dataset == NAME for finding in findings)
    return {finding.check: finding for finding in findings}


def failed_checks(copy: Copy) -> dict[str, str]:
    return {check: f.detail for check, f in run(copy).items() if not f.ok}


def not_checked(found: Mapping[str, str], expected: Sequence[str], of: str) -> None:
    for check in expected:
        assert found[check] == f"not checked, since the {of} itself could not be read"


# Intact catalogues.


def test_an_intact_catalogue_passes(copy: Copy) -> None:
    found = run(copy)
    assert failed_checks(copy) == {}
    assert found["counts"].detail.startswith("20 images x positions = activations counted, for 5")
    assert found["manifest"].detail == "21 candidates, each once, in 16 shards"
    assert found["failures"].detail.startswith("1 failure, each of a candidate")
    assert found["folds"].detail == "16 folds of 1 to 2 candidates sum to the DNA"
    assert found["partials"].detail == "16 partials sum to the DNA"


def test_a_verdict_counts_versions_of_two_specs_and_none_without_files() -> None:
    of_two_specs = [Finding("a", check, True, "") for check in ("spec", "counts") for _ in "12"]
    more = [Finding("a", "exemplars", True, ""), Finding("a", "shard 3", True, "")]
    gone = [Finding(name, "history", True, "") for name in "ab"]
    verdict = Verification((Finding("", "log", True, ""), *of_two_specs, *more, *gone)).verdict
    assert verdict == "2 versions of 1 dataset, 9 checks: nothing is wrong."


def test_verifying_changes_nothing(copy: Copy) -> None:
    before = {i.uri: i.identity for i in storage.walk(copy.catalogue.root)}
    run(copy)
    assert {i.uri: i.identity for i in storage.walk(copy.catalogue.root)} == before


def test_datasets_and_specs_can_be_chosen(copy: Copy) -> None:
    spec, ranges = tiny_spec(bins=9)
    for name in (NAME, "z/last"):
        manifest = plan(entries(name, 3))
        partials = [hand_made(shard, spec, ranges) for shard in manifest.shards]
        commit_dataset(copy.catalogue, name, manifest, partials, spec, ranges)
    assert [f.dataset for f in verify(copy.catalogue)] == [NAME] * 12 + ["z/last"] * 6
    assert all(finding.ok for finding in verify(copy.catalogue))
    assert len(list(verify(copy.catalogue, [NAME], spec.digest[:8]))) == 6
    assert {f.dataset for f in verify(copy.catalogue, ["z/last"])} == {"z/last"}
    with pytest.raises(NotFound, match="no dataset 'x'; it has: photos, z/last"):
        list(verify(copy.catalogue, ["x"]))
    with pytest.raises(NotFound, match=f"z/last has no version under spec {SPEC.digest}"):
        list(verify(copy.catalogue, ["z/last"], SPEC.digest))
    assert list(verify(Catalogue(copy.catalogue.root + "-none"))) == []


# Files that are not the ones committed.


def flipped(data: bytes) -> bytes:
    at = len(data) // 4  # in the rows of a Parquet file
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


SPOILED: dict[str, Callable[[bytes], bytes | None]] = {
    "a byte flipped": flipped,
    "torn": lambda data: data[:-40],
    "empty": lambda data: b"",
    "deleted": lambda data: None,
}
BLAMED = {
    "dna": ("counts", {"folds": "DNA", "partials": "DNA"}),
    "folds": ("folds", {}),
    "failures": ("failures", {}),
    "manifests": ("manifest", {"failures": "manifest", "partials": "manifest"}),
}


@pytest.mark.parametrize("kind", BLAMED)
@pytest.mark.parametrize("how", SPOILED)
def test_a_damaged_file_is_named(copy: Copy, kind: str, how: str) -> None:
    data = SPOILED[how](copy.read(kind))
    if data is None:
        storage.delete(copy.uri(kind))
    else:
        storage.replace(copy.uri(kind), data)
    found = failed_checks(copy)
    check, followers = BLAMED[kind]
    assert set(found) == {check, *followers}
    assert copy.uri(kind) in found[check]
    for follower, of in followers.items():
        not_checked(found, [follower], of)


@pytest.mark.parametrize(
    ("place", "how"),
    [
        *((place, how) for place in ("spec", "ranges", "partial") for how in ("torn", "empty")),
        *((place, "a byte flipped") for place in ("spec", "ranges")),
    ],
)
def test_damaged_specs_ranges_and_partials_are_named(copy: Copy, place: str, how: str) -> None:
    uris = {"spec": copy.spec_uri, "ranges": copy.ranges_uri, "partial": copy.partials[4]}
    uri = uris[place]
    storage.replace(uri, SPOILED[how](storage.read(uri)) or b"")
    found = failed_checks(copy)
    assert set(found) == {"partials" if place == "partial" else "spec"}
    assert uri in next(iter(found.values()))


def test_another_valid_dna_is_not_the_one_committed(copy: Copy) -> None:
    dna, metadata = decode_dna(copy.read("dna"), "dna")
    other = replace(
        random_dna(SPEC, RANGES, 20, 77),
        failed=1,
        transparent=dna.transparent,
        single_colour=dna.single_colour,
    )
    extra = {key: metadata[key] for key in ("dataset", "digest", "manifest", "products", "folds")}
    data = encode_dna(other, **extra)
    storage.replace(copy.uri("dna"), data)
    assert "was committed" in failed_checks(copy)["counts"]
    copy.put("dna", data)
    found = failed_checks(copy)
    assert set(found) == {"counts", "folds", "partials"}
    assert f"{copy.uri('dna')}: its numbers have digest" in found["counts"]
    copy.put("dna", encode_dna(dna, **extra))
    assert failed_checks(copy) == {}


def test_a_dna_of_another_dataset_is_refused(copy: Copy) -> None:
    dna, _ = decode_dna(copy.read("dna"), "dna")
    copy.put("dna", encode_dna(dna, dataset="paintings"))
    found = failed_checks(copy)
    assert set(found) == {"counts", "folds", "partials"}
    assert f"{copy.uri('dna')} belongs to paintings under spec" in found["counts"]


# Forged files, with a commit that states their sha256.


def folds_with(copy: Copy, change: Callable[[np.ndarray], None], column: str = "counts") -> bytes:
    """Returns the folds' file, with a change in the first fold of layer `stem`."""
    file = DnaFile(copy.read("folds"), "folds", "folds")
    groups = []
    for layer in SPEC.layers:
        parts = file.read_folds(layer)
        first = min(parts)
        if layer == "stem":
            values = getattr(parts[first], column).copy()
            change(values)
            parts[first] = replace(parts[first], **{column: values})
        groups.append(pa.concat_tables(to_table(dna, index) for index, dna in parts.items()))
    return encode_layers("folds", file.metadata, groups)


def test_folds_that_hold_other_candidates_than_planned_are_found(copy: Copy) -> None:
    """They sum to the DNA all the same."""
    file = DnaFile(copy.read("folds"), "folds", "folds")
    sizes = {int(i): fold["images"] + fold["failed"] for i, fold in file.metadata["folds"].items()}
    large, small = max(sizes, key=lambda i: sizes[i]), min(sizes, key=lambda i: sizes[i])
    assert sizes[large] == sizes[small] + 1
    other = {large: small, small: large}
    groups = []
    for layer in SPEC.layers:
        parts = file.read_folds(layer)
        swapped = {index: parts[other.get(index, index)] for index in parts}
        groups.append(pa.concat_tables(to_table(dna, index) for index, dna in swapped.items()))
    folds = file.metadata["folds"]
    moved = {index: folds[str(other.get(int(index), int(index)))] for index in folds}
    copy.put("folds", encode_layers("folds", {**file.metadata, "folds": moved}, groups))
    found = failed_checks(copy)
    assert set(found) == {"folds"}
    first = min(large, small)
    held, planned = sizes[other[first]], sizes[first]
    assert f"fold {first} holds {held} candidates, the manifest {planned}" in found["folds"]


def test_one_image_makes_one_fold_and_one_partial(tmp_path: Path) -> None:
    place = Catalogue(str(tmp_path))
    manifest = plan(entries(NAME, 1))
    commit_dataset(place, NAME, manifest, [hand_made(shard) for shard in manifest.shards])
    details = {finding.check: finding.detail for finding in verify(place)}
    assert details["folds"] == "1 fold of 1 candidate sums to the DNA"
    assert details["partials"] == "1 partial sums to the DNA"


def move(counts: np.ndarray) -> None:
    """Moves one activation to another bin: the number of activations stays right."""
    at = int(np.flatnonzero(counts[1])[0])
    counts[1, at] -= 1
    counts[1, (at + 1) % counts.shape[1]] += 1


def scale(values: np.ndarray) -> None:
    values[1] = values[1] * 1.5 + 1


@pytest.mark.parametrize(
    ("column", "change"), [("counts", move), ("mean", scale), ("m2", scale), ("low", scale)]
)
def test_folds_that_do_not_sum_to_the_dna_are_found(
    copy: Copy, column: str, change: Callable[[np.ndarray], None]
) -> None:
    copy.put("folds", folds_with(copy, lambda values: None))
    assert failed_checks(copy) == {}
    copy.put("folds", folds_with(copy, change, column))
    found = failed_checks(copy)
    assert set(found) == {"folds"}
    assert copy.uri("folds") in found["folds"]
    assert "layer stem do not sum to the DNA" in found["folds"]


def test_folds_whose_counts_are_not_conserved_are_found(copy: Copy) -> None:
    def lose(counts: np.ndarray) -> None:
        counts[1, 1] += 1

    copy.put("folds", folds_with(copy, lose))
    found = failed_checks(copy)
    assert set(found) == {"folds"}
    assert f"{copy.uri('folds')}, fold 0: neuron stem[1]" in found["folds"]


def failure(copy: Copy) -> Failure:
    (listed,) = copy.catalogue.failures(NAME, copy.version)
    return listed


@pytest.mark.parametrize(
    "listed",
    [
        lambda f: [],
        lambda f: [f, f],
        lambda f: [replace(f, uri="file:///elsewhere/x.jpg")],
        lambda f: [replace(f, member="inside")],
    ],
)
def test_failures_that_do_not_match_the_commit_are_found(
    copy: Copy, listed: Callable[[Failure], Sequence[Failure]]
) -> None:
    copy.put("failures", encode_failures([failure(copy)]))
    assert failed_checks(copy) == {}
    copy.put("failures", encode_failures(listed(failure(copy))))
    found = failed_checks(copy)
    assert set(found) == {"failures"}
    assert "failures" in found["failures"]


def test_a_failure_listed_twice_is_found(copy: Copy) -> None:
    """The commit states two failures, and the list has two, but of one candidate."""
    copy.put("failures", encode_failures([failure(copy)] * 2))
    copy.forge_commit(failed=2)
    assert "listed twice" in failed_checks(copy)["failures"]


def manifest_of(copy: Copy) -> Manifest:
    entries = Entries(copy.catalogue.entries_uri)
    return Manifest.decode(copy.read("manifests"), "m", entries)


def test_a_manifest_without_one_of_its_shards_is_found(copy: Copy) -> None:
    manifest = manifest_of(copy)
    fewer = Manifest.of(manifest.shards[:-1], manifest.shard_images)
    storage.replace(copy.uri("manifests"), fewer.data)
    assert copy.uri("manifests") in failed_checks(copy)["manifest"]
    copy.put("manifests", fewer.data)
    found = failed_checks(copy)
    assert "manifest" in found
    assert set(found) <= {"manifest", "failures", "partials"}


def test_a_manifest_that_states_a_wrong_digest_is_found(copy: Copy) -> None:
    manifest = manifest_of(copy)
    lying = Manifest.of(manifest.shards[::-1], manifest.shard_images)
    copy.put("manifests", with_digest(lying, manifest.digest))
    found = failed_checks(copy)
    assert set(found) == {"manifest", "failures", "partials"}
    assert copy.uri("manifests") in found["manifest"]


def test_a_manifest_that_lists_a_candidate_twice_is_found(copy: Copy) -> None:
    first, second, *rest = manifest_of(copy).shards
    shard = Shard(second.index, second.fold, (first.members[0], *second.members[1:]))
    twice = Manifest.of((first, shard, *rest), 64)
    copy.put("manifests", twice.data)
    assert f"but holds {twice.digest}" in failed_checks(copy)["manifest"]
    copy.forge_commit(manifest=twice.digest)
    put_entries(twice, copy.catalogue.entries_uri)
    storage.create(copy.catalogue.uri("manifests", SPEC.digest, NAME, twice.digest), twice.data)
    said = f"the manifest lists a candidate twice: {first.members[0].uri}"
    assert failed_checks(copy)["manifest"] == said


def test_another_manifest_with_as_many_candidates_is_found(copy: Copy) -> None:
    """The other manifest has other keys, so no partial is found for it; that alone is no fault."""
    bad = failure(copy).uri
    others = [replace(e, uri=bad) if i == 0 else e for i, e in enumerate(entries("other", 21))]
    copy.put("manifests", plan(others).data)
    found = failed_checks(copy)
    assert "manifest" in found
    assert copy.uri("manifests") in found["manifest"]


# The spec and its ranges.


def changed_spec(copy: Copy, **changes: Any) -> bytes:
    return json.dumps(json.loads(storage.read(copy.spec_uri)) | changes).encode()


def test_another_spec_is_found(copy: Copy) -> None:
    storage.replace(copy.spec_uri, changed_spec(copy, bins=6))
    found = failed_checks(copy)
    assert set(found) == {"spec"}
    assert f"{copy.spec_uri} should hold spec" in found["spec"]
    storage.delete(copy.spec_uri)
    assert copy.spec_uri in failed_checks(copy)["spec"]


@pytest.mark.parametrize("data", [b"[]", b"{}", b"null", b"1", "bins", "precision", "strange"])
def test_a_file_that_is_not_a_spec_is_named(copy: Copy, data: bytes | str) -> None:
    if isinstance(data, str):
        data = changed_spec(copy, **{data: 1})
    storage.replace(copy.spec_uri, data)
    found = failed_checks(copy)
    assert set(found) == {"spec"}
    assert copy.spec_uri in found["spec"]


def test_other_ranges_are_found(copy: Copy) -> None:
    moved = Ranges(RANGES.taps, RANGES.low - 1, RANGES.high)
    uri = copy.ranges_uri
    storage.replace(uri, encode_ranges(moved, NETWORK))
    found = failed_checks(copy)
    assert set(found) == {"spec"}
    assert found["spec"] == (
        f"{uri} should hold ranges {RANGES.digest}, but holds {moved.digest}; restore the file"
    )
    storage.delete(uri)
    assert uri in failed_checks(copy)["spec"]


@pytest.mark.parametrize(("side", "neuron"), [("low", 1), ("high", 4)])
def test_a_dna_that_was_counted_in_other_ranges_is_found(
    tmp_path: Path, side: str, neuron: int
) -> None:
    """All that is stored of it agrees, but for the range of one neuron."""
    sides = {"low": RANGES.low.copy(), "high": RANGES.high.copy()}
    sides[side][neuron] += 0.25 if side == "high" else -0.25
    other = Ranges(RANGES.taps, sides["low"], sides["high"])
    place = Catalogue(str(tmp_path))
    manifest = plan(entries(NAME, 4))
    partials = [hand_made(shard) for shard in manifest.shards]
    moved = [replace(p, dna=replace(p.dna, low=other.low, high=other.high)) for p in partials]
    commit_dataset(place, NAME, manifest, moved)
    (bad,) = [finding for finding in verify(place) if not finding.ok and finding.check == "counts"]
    name = ("stem[1]", "head[1]")[neuron == 4]
    assert f"neuron {name} was counted in [{other.low[neuron]}, {other.high[neuron]}]" in bad.detail
    assert f"its range is [{RANGES.low[neuron]}, {RANGES.high[neuron]}]" in bad.detail


# Partials.


def counts_moved(partial: Partial) -> Partial:
    counts = partial.dna.counts.copy()
    move(counts)
    return replace(partial, dna=replace(partial.dna, counts=counts))


def outside_moved(partial: Partial) -> Partial:
    dna = partial.dna
    swapped = replace(dna, underflow=dna.overflow + dna.nonfinite, overflow=dna.underflow,
                      nonfinite=np.zeros_like(dna.nonfinite))  # fmt: skip
    assert not np.array_equal(swapped.underflow, dna.underflow)
    return replace(partial, dna=swapped)


def mean_moved(partial: Partial) -> Partial:
    return replace(partial, dna=replace(partial.dna, mean=partial.dna.mean + 1))


def spread_moved(partial: Partial) -> Partial:
    return replace(partial, dna=replace(partial.dna, m2=partial.dna.m2 + 1))


def extremes_moved(partial: Partial) -> Partial:
    return replace(partial, dna=replace(partial.dna, max=partial.dna.max + np.float32(100)))


def an_image_more(partial: Partial) -> Partial:
    more = random_dna(SPEC, RANGES, partial.dna.images + 1, 8)
    return replace(partial, dna=replace(more, failed=partial.dna.failed))


def a_failure_more(partial: Partial) -> Partial:
    failures = (*partial.failures, Failure("file:///zzz", "", "empty", ""))
    return replace(partial, dna=replace(partial.dna, failed=len(failures)), failures=failures)


def a_transparent_image_more(partial: Partial) -> Partial:
    return replace(partial, dna=replace(partial.dna, transparent=partial.dna.images))


def failures_of(uri: str) -> tuple[Failure, ...]:
    return Partial.decode(storage.read(uri), uri).failures


def another_reason(partial: Partial) -> Partial:
    failures = tuple(replace(failure, reason="empty") for failure in partial.failures)
    return replace(partial, failures=failures)


@pytest.mark.parametrize(
    "change",
    [
        counts_moved,
        an_image_more,
        outside_moved,
        mean_moved,
        spread_moved,
        extremes_moved,
        a_failure_more,
        another_reason,
        a_transparent_image_more,
    ],
)
def test_a_forged_partial_with_correct_sums_is_found(
    copy: Copy, change: Callable[[Partial], Partial]
) -> None:
    at = 3
    if change is another_reason:
        at = next(i for i, uri in enumerate(copy.partials) if failures_of(uri))
    copy.change_partial(at, change)
    found = failed_checks(copy)
    assert set(found) == {"partials"}
    assert "do not sum to the DNA" in found["partials"]


def test_partials_are_added_up_again_and_no_sum_of_a_build_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reduction, "FAN_IN", 2)
    monkeypatch.setattr(reduction, "LAST_SUMMANDS", 1)
    place = Catalogue(str(tmp_path))
    manifest = plan(entries(NAME, 48), shard_images=1)
    commit_dataset(place, NAME, manifest, [hand_made(shard) for shard in manifest.shards])
    kept = {partial_uri(work_of(place), key) for key in manifest.keys(SPEC.digest, PRODUCTS)}
    sums = [item.uri for item in storage.walk(work_of(place)) if item.uri not in kept]
    assert len(sums) > 16
    for uri in sums:
        storage.delete(uri)
    details = {finding.check: finding.detail for finding in verify(place)}
    assert details["partials"] == "48 partials sum to the DNA"


def work_of(place: Catalogue) -> str:
    return place.work_uri(NAME, SPEC.digest)


def test_a_neuron_without_a_mean_is_no_difference(tmp_path: Path) -> None:
    """An activation was not finite."""
    place = Catalogue(str(tmp_path))
    manifest = plan(entries(NAME, 3))
    partials = []
    for partial in map(hand_made, manifest.shards):
        mean, m2 = partial.dna.mean.copy(), partial.dna.m2.copy()
        mean[1] = m2[1] = np.nan
        partials.append(replace(partial, dna=replace(partial.dna, mean=mean, m2=m2)))
    commit_dataset(place, NAME, manifest, partials)
    assert [finding for finding in verify(place) if not finding.ok] == []


def test_a_partial_whose_counts_do_not_add_up_is_found(copy: Copy) -> None:
    def lose(partial: Partial) -> Partial:
        counts = partial.dna.counts.copy()
        counts[4, 0] += 1
        return replace(partial, dna=replace(partial.dna, counts=counts))

    copy.change_partial(3, lose)
    found = failed_checks(copy)
    assert set(found) == {"partials"}
    assert f"{copy.partials[3]}: neuron head[1]" in found["partials"]


def test_a_partial_in_the_place_of_another_is_found(copy: Copy) -> None:
    storage.replace(copy.partials[3], storage.read(copy.partials[5]))
    found = failed_checks(copy)
    assert set(found) == {"partials"}
    assert copy.partials[5].rpartition("/")[2].removesuffix(".parquet") in found["partials"]


def test_a_partial_of_another_spec_is_found(copy: Copy) -> None:
    other, ranges = tiny_spec(bins=9)
    partial = Partial(random_dna(other, ranges, 1, 1), ("x",), ())
    storage.replace(copy.partials[3], partial.encode())
    assert set(failed_checks(copy)) == {"partials"}


@pytest.mark.parametrize("removed", [1, 15, 16])
def test_missing_partials_are_accepted(copy: Copy, removed: int) -> None:
    for uri in copy.partials[:removed]:
        storage.delete(uri)
    found = run(copy)
    assert all(finding.ok for finding in found.values())
    left = 16 - removed
    remark = f"{left} of 16 are kept; each is whole" if left else "none is kept"
    assert found["partials"].detail == remark


def test_a_partial_of_an_unknown_shard_is_found_beside_a_missing_one(copy: Copy) -> None:
    storage.delete(copy.partials[0])
    copy.change_partial(3, lambda partial: replace(partial, shards=("zzz",)))
    found = failed_checks(copy)
    assert set(found) == {"partials"}
    assert copy.partials[3] in found["partials"]


# Forged commits.


@pytest.mark.parametrize(
    ("forged", "blamed"),
    [
        ({"images": 21}, {"counts", "manifest"}),
        ({"images": 19}, {"counts", "manifest"}),
        ({"failed": 0}, {"counts", "manifest", "failures"}),
        ({"failed": 2}, {"counts", "manifest", "failures"}),
        ({"images": 21, "failed": 0}, {"counts", "failures"}),
        ({"products": ["histogram"]}, {"counts"}),
    ],
)
def test_a_commit_with_forged_totals_is_found(
    copy: Copy, forged: dict[str, Any], blamed: set[str]
) -> None:
    copy.forge_commit(**forged)
    found = failed_checks(copy)
    not_checked(found, ["folds", "partials"], "DNA")
    assert set(found) == blamed | {"folds", "partials"}
    assert copy.uri("dna") in found["counts"]


@pytest.mark.parametrize("kind", BLAMED)
def test_a_commit_with_a_forged_sha256_is_found(copy: Copy, kind: str) -> None:
    copy.forge_commit(sha256={**copy.version.sha256, kind: "00" * 32})
    found = failed_checks(copy)
    check, followers = BLAMED[kind]
    assert set(found) == {check, *followers}
    assert f"{copy.uri(kind)} has sha256" in found[check]
    assert "00" * 32 in found[check]


def test_a_commit_whose_version_is_under_another_spec_is_refused(copy: Copy) -> None:
    copy.forge_commit(spec="0123")
    with pytest.raises(CorruptFile, match=r"_log/0+1\.json: .* states spec 0123"):
        copy.catalogue.head()


@pytest.mark.parametrize("field", ["dna", "manifest"])
def test_a_commit_that_names_missing_files_is_found(copy: Copy, field: str) -> None:
    copy.forge_commit(**{field: "0123"})
    found = failed_checks(copy)
    check = {"dna": "counts", "manifest": "manifest"}[field]
    assert "0123" in found[check]
    assert check in found


def test_a_commit_with_forged_numerics_is_found(copy: Copy) -> None:
    copy.forge_commit(numerics=[{"numerics": OTHER_NUMERICS.to_json(), "images": 20}])
    assert failed_checks(copy)


def test_a_commit_that_cannot_be_read_is_named(copy: Copy) -> None:
    uri = copy.catalogue.log_uri(1)
    storage.replace(uri, b"{torn")
    with pytest.raises(CorruptFile, match="00000000000000000001"):
        list(verify(copy.catalogue))


@pytest.mark.parametrize(
    "forged",
    [
        {"sha256": {}},
        {"sha256": None},
        {"images": "20"},
        {"images": None},
        {"dna": 7},
        {"products": [[]]},
        {"unknown": 1},
    ],
    ids=str,
)
def test_a_commit_of_the_wrong_shape_is_a_vdna_error(copy: Copy, forged: dict[str, Any]) -> None:
    copy.forge_commit(**forged)
    refused = None
    try:
        found = failed_checks(copy)
    except VdnaError as error:
        refused = str(error)
    assert found if refused is None else "_log" in refused


@pytest.mark.parametrize("kind", BLAMED)
@pytest.mark.parametrize("what", ["nothing", "text", "another kind", "a plain parquet"])
def test_an_unreadable_file_is_found_even_if_its_sha256_is_right(
    copy: Copy, kind: str, what: str
) -> None:
    kinds = list(BLAMED)
    rubbish = {
        "nothing": b"",
        "text": b"rubbish" * 100,
        "another kind": copy.read(kinds[kinds.index(kind) - 1]),
        "a plain parquet": plain_parquet(),
    }
    copy.put(kind, rubbish[what])
    found = failed_checks(copy)
    check, followers = BLAMED[kind]
    assert set(found) == {check, *followers}
    assert copy.uri(kind) in found[check]


def plain_parquet() -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"x": [1]}), sink)
    return bytes(sink.getvalue().to_pybytes())


@pytest.mark.parametrize(
    ("kind", "field"),
    [
        *(("dna", field) for field in ("dataset", "spec", "images", "numerics")),
        *(("folds", field) for field in ("spec", "images", "numerics", "folds")),
    ],
)
def test_metadata_that_lacks_a_field_is_found(copy: Copy, kind: str, field: str) -> None:
    """The rest of the file is right, and the commit states its digest."""
    if kind == "dna":
        dna, metadata = decode_dna(copy.read("dna"), "dna")
        groups = [to_table(dna.select([layer])) for layer in dna.layers]
    else:
        file = DnaFile(copy.read("folds"), "folds", "folds")
        metadata = file.metadata
        groups = [
            pa.concat_tables(to_table(d, i) for i, d in file.read_folds(layer).items())
            for layer in SPEC.layers
        ]
    metadata = dict(metadata)
    del metadata[field]
    copy.put(kind, encode_layers(kind, metadata, groups))
    found = failed_checks(copy)
    check, followers = BLAMED[kind]
    assert set(found) == {check, *followers}
    assert copy.uri(kind) in found[check]


# A catalogue of real images and the real network.


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("real")
    photos = write_photos(folder / "images", 5)
    whole = photos[0].read_bytes()
    (folder / "images" / "bad.jpg").write_bytes(whole[: len(whole) // 2])
    request = Request(NAME, str(folder / "images"), bins=16, max_failures=2)
    build_datasets(Catalogue(str(folder / "catalogue")), [request], InProcess())
    return folder / "catalogue"


def test_a_real_build_passes(real: Path) -> None:
    copy = Copy(Catalogue(str(real)))
    found = run(copy)
    assert [finding for finding in found.values() if not finding.ok] == []
    assert found["counts"].detail.endswith("for 3,120 neurons")
    assert failure(copy).reason == "truncated"
    assert asdict(copy.version)["images"] == 5


@pytest.mark.parametrize("how", ["dna", "partial"])
def test_a_change_to_a_real_build_is_found(real: Path, tmp_path: Path, how: str) -> None:
    copy = copied(real, tmp_path / "copy")
    if how == "dna":
        storage.replace(copy.uri("dna"), flipped(copy.read("dna")))
        found = failed_checks(copy)
        assert set(found) == {"counts", "exemplars", "folds", "partials"}
        assert copy.uri("dna") in found["counts"]
    else:
        # The folder's name decides which shard has only the bad image.
        held = (Partial.decode(storage.read(uri), uri).dna.images > 0 for uri in copy.partials)
        copy.change_partial(list(held).index(True), counts_moved)
        assert set(failed_checks(copy)) == {"partials"}
