"""Tests the notes that readers of distances get about the datasets."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pipeline.catalogue import Version
from pipeline.comparing import is_nested, notes_of
from pipeline.comparing.notes import are_apart, numerics_notes, shared_source_notes
from pipeline.dna import Lens
from pipeline.wording import some_of
from tests.support.builders import NUMERICS, OTHER_NUMERICS


def noted(*numerics: object) -> Version:
    entry = [{"numerics": n.to_json(), "images": 1} for n in numerics]
    return Version("d", "m", "s", 1, 0, (), {}, "", "", "", tuple(entry))


def test_numerics_that_differ_are_named_with_both_values() -> None:
    newer = replace(NUMERICS, versions=(("numpy", "2"), ("torch", "2.7")), device="cuda")
    assert numerics_notes({"a": noted(NUMERICS), "b": noted(NUMERICS)}) == []
    (note,) = numerics_notes({"a": noted(NUMERICS), "b": noted(OTHER_NUMERICS)})
    assert note == "compiled was False for a; True for b"
    notes = numerics_notes({"a": noted(NUMERICS), "b": noted(newer), "c": noted(NUMERICS)})
    assert sorted(notes) == [
        "device was cpu for a, c; cuda for b",
        "torch was 2.6 for a, c; 2.7 for b",
    ]


def test_where_images_were_resized_is_named_if_it_differs() -> None:
    """The numerics of a CPU do not state it."""
    on_gpu = replace(NUMERICS, resized="device-1")
    assert "resized" not in NUMERICS.to_json()
    (note,) = numerics_notes({"a": noted(NUMERICS), "b": noted(on_gpu)})
    assert note == "resized was cpu for a; device-1 for b"


def test_what_ran_the_network_is_named_if_it_differs() -> None:
    """Only numerics of OpenVINO name its version."""
    versions = (("numpy", "2"), ("openvino", "2026"), ("torch", "2.6"))
    by_openvino = replace(NUMERICS, versions=versions)
    (note,) = numerics_notes({"a": noted(NUMERICS), "b": noted(by_openvino)})
    assert note == "backend was openvino for b; torch for a"
    newer = replace(by_openvino, versions=(versions[0], ("openvino", "2027"), versions[2]))
    (note,) = numerics_notes({"a": noted(newer), "b": noted(by_openvino)})
    assert note == "openvino was 2026 for b; 2027 for a"


def test_one_dataset_may_have_two_numerics() -> None:
    (note,) = numerics_notes({"a": noted(NUMERICS, OTHER_NUMERICS)})
    assert note == "compiled was False for a; True for a"
    assert numerics_notes({}) == []


# Notes on sources that overlap, for which error bars do not hold.


def of_source(source: str, **changes: Any) -> Version:
    return replace(noted(), source=source, **changes)


def shared(**sources: str) -> list[str]:
    return shared_source_notes({name: of_source(source) for name, source in sources.items()})


def test_equal_and_nested_sources_are_noted() -> None:
    assert shared(a="s3://b/a", same="s3://b/a") == [
        "a and same are of the source s3://b/a, or of places within it"
    ]
    assert shared(deep="s3://b/a/x/y", a="s3://b/a", other="s3://b/c") == [
        "a and deep are of the source s3://b/a, or of places within it"
    ]
    assert shared(bucket="s3://b", a="s3://b/a") == [
        "bucket and a are of the source s3://b, or of places within it"
    ]
    assert shared(disk="/", a="/data/a", c="s3://b/c") == [
        "disk and a are of the source /, or of places within it"
    ]


def test_a_list_counts_as_the_folder_that_it_is_in() -> None:
    folder = "are of the source /b, or of places within it"
    assert shared(a="/b/a.txt", b="/b/B.CSV") == [f"a and b {folder}"]
    assert shared(a="/b/a.csv", whole="/b") == [f"a and whole {folder}"]
    assert shared(a="/b/a.csv", part="/b/part") == [f"a and part {folder}"]
    assert shared(a="/b/a.tar", b="/b/b.tar") == []


def test_siblings_and_names_that_begin_alike_are_not_nested() -> None:
    assert shared(a="s3://b/a", ab="s3://b/ab", c="s3://b/a-c", d="s3://b/a.d", e="s3://ba/a") == []
    assert shared(a="/b/a", ab="/b/ab", s3="s3://b/a", gs="gs://b/a") == []
    assert shared(a="s3://b/x/a", b="s3://b/x/b") == []
    assert shared() == []
    # The source is nested, though a name with the same beginning sorts between the two.
    (note,) = shared(a="s3://b/a", between="s3://b/a-c", within="s3://b/a/c")
    assert note == "a and within are of the source s3://b/a, or of places within it"


def test_images_in_pairs_are_noted_in_place_of_shared_sources() -> None:
    sources = {"a": "s3://b/a", "b": "s3://b/a", "c": "s3://b/a/c"}
    versions = {name: replace(of_source(source), images=16) for name, source in sources.items()}
    pairs = {("a", "b"): 0.904, ("c", "a"): 0.01, ("b", "c"): 1.0}
    said = "images of the same path and in the same fold count as pairs, as those of two versions "
    said += "do, and the error bars allow for it; that does no harm if only their names are equal "
    said += "(share of the images): "
    assert notes_of(versions, paired=pairs) == [
        f"{said}a and b (90%), c and a (1%) and b and c (100%)"
    ]
    assert notes_of(versions, paired=pairs, barred=False) == []
    open_ones = pairs | {("c", "a"): 0.009}
    shared, paired = notes_of(versions, paired=open_ones)
    assert shared.startswith("these may share images, and then error bars do not hold: a, b and c")
    assert paired == f"{said}a and b (90%) and b and c (100%)"


def test_a_whole_in_pairs_with_its_parts_is_not_said_to_share_images() -> None:
    parts = {
        "d": of_source("/d"),
        "d/x": of_source("/d", part_of="d", value="x"),
        "d/y": of_source("/d", part_of="d", value="y"),
    }
    pairs = {("d", "d/x"): 1.0, ("d", "d/y"): 1.0}
    assert shared_source_notes(parts, pairs) == []
    assert len(shared_source_notes(parts, {("d", "d/x"): 1.0})) == 1


@pytest.mark.parametrize(
    ("one", "other", "apart"),
    [
        ("2026-11-18 … 2026-11-24", "2026-10-28 … 2026-11-24", False),
        ("2026-11-18 … 2026-11-24", "2026-11-11 … 2026-11-17", True),
        ("2026-11-18 … 2026-11-24", "2026-11-20", False),
        ("2026-11-18 … 2026-11-24", "2026-11-25", True),
        ("2026-11-18 … 2026-11-24", "rain", True),
        ("a/2026-11-24 … b/2026-11-24", "a/2026-11-24", False),
        ("a/2026-11-24", "b/2026-11-24", True),
        ("2026-11-24", "2026-11-24", False),
    ],
)
def test_windows_that_have_days_in_common_may_share_images(
    one: str, other: str, apart: bool
) -> None:
    sides = [of_source("/cams", part_of="cams", value=value) for value in (one, other)]
    assert are_apart(*sides) == are_apart(*sides[::-1]) == apart
    found = shared_source_notes(dict(zip(("cams@last:7d", "other"), sides, strict=True)))
    assert found == (
        [] if apart else ["cams@last:7d and other are of the source /cams, or of places within it"]
    )
    whole = {"cams": of_source("/cams", by="1"), "cams@last:7d": sides[0]}
    assert len(shared_source_notes(whole)) == 1


def test_versions_without_a_source_share_no_images() -> None:
    imported = of_source("a.npz", origin={"file": "a.npz"})
    assert shared_source_notes({"a": imported, "b": imported}) == []
    assert shared(a="", b="") == []


def test_hundreds_of_nested_sources_take_one_short_sentence() -> None:
    sources = {f"d{i:03}": f"s3://b/all/{i:03}" for i in range(500)}
    assert shared(**sources) == []
    apart = {f"e{i}": "s3://c/e" for i in range(4)}
    assert shared(all="s3://b/all", **sources, **apart) == [
        "all, d000, d001 and 498 more are of the source s3://b/all, or of places within it",
        "e0, e1, e2 and e3 are of the source s3://c/e, or of places within it",
    ]


@pytest.mark.parametrize(
    ("one", "other", "nested"),
    [
        *(("a/b", "a/b/", True), ("a/b", "a/b/c", True), ("a/b", "a/bc", False)),
        *(("a/b", "", False), ("a/b", "a/list.csv", True), ("a/b", "c/list.csv", False)),
    ],
)
def test_sources_are_nested_by_whole_names(one: str, other: str, nested: bool) -> None:
    assert is_nested(one, other) is is_nested(other, one) is nested


# All of them.


def lens_of(**provenance: object) -> Lens:
    return Lens("no-fog", (("stem", 2),), np.ones(2), provenance)


def test_a_lens_fitted_on_these_datasets_or_for_another_spec_is_noted() -> None:
    versions = {name: replace(noted(), dna=f"dna {name}", images=99) for name in ("a", "b", "c")}
    members = {"a": "dna a", "b": "dna b", "c": "another"}
    (fitted,) = notes_of(versions, lenses=[None, lens_of(members=members, spec="s")])
    assert fitted.startswith("lens no-fog was fitted on a and b: between them it does better than")
    by_version = {"a@1": versions["a"], "b": versions["b"], "a": versions["a"]}
    (named,) = notes_of(by_version, lenses=[lens_of(members=members, spec="s")])
    assert named.startswith("lens no-fog was fitted on a@1, b and a: between them")
    del by_version["b"]
    assert notes_of(by_version, lenses=[lens_of(members=members, spec="s")]) == []
    (other,) = notes_of(versions, lenses=[lens_of(members={"a": "dna a"}, spec="t" * 64)])
    assert other == (
        f"lens no-fog was fitted under spec {'t' * 12}, and these are of s, under which neurons "
        "of these weights are counted otherwise"
    )
    assert notes_of(versions, lenses=[lens_of()]) == []


def test_what_was_left_out_and_few_images_are_noted() -> None:
    versions = {"a": replace(noted(), images=15), "b": replace(noted(), images=16)}
    left, few = notes_of(versions, apart=[f"d{i}" for i in range(9)])
    assert left == "not compared, as built under other specs (`spec`): d0, d1, d2 and 6 more"
    assert few == "error bars were checked on 16 images or more; fewer are of a (15)"
    assert notes_of(versions, barred=False) == []


def test_long_lists_of_names_are_shortened() -> None:
    found = [some_of([f"d{i}" for i in range(count)]) for count in (1, 2, 4, 5)]
    assert found == ["d0", "d0 and d1", "d0, d1, d2 and d3", "d0, d1, d2 and 2 more"]
