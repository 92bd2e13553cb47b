"""Tests what a spec of bf16 states of libraries and hardware, and what a refusal says."""

from __future__ import annotations

import json
import platform
import re
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline import storage
from pipeline.building import Request, make_spec
from pipeline.counting import Recipe, extractor, numerics, worker
from pipeline.counting.instructions import WIDEST, cpu_instructions, widest_of
from pipeline.errors import SpecMismatch
from pipeline.networks import find_ranges
from pipeline.spec import ANY_INSTRUCTIONS, BF16_LIBRARIES, Numerics, Precision, Resources, Spec
from tests.support import tiny_network as tiny

FP32 = "Or build both anew, with the same or in fp32, whose specs leave the numerics out"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> tiny.Place:
    return tiny.install(tmp_path_factory.mktemp("tiny"))


def spec_of(place: tiny.Place, precision: Precision = "bf16") -> Spec:
    ranges, _ = find_ranges(place.network, place.ranges, {})
    request = Request("x", "x", precision=precision, **place.options)  # type: ignore[arg-type]  # fields by name
    return make_spec(request, place.network, ranges.digest, "cpu")


def with_versions(spec: Spec, **changed: str) -> Spec:
    stated = spec.bf16_numerics
    assert stated is not None
    versions = tuple((name, changed.get(name, at)) for name, at in stated.versions)
    return replace(spec, bf16_numerics=replace(stated, versions=versions))


def recipe(place: tiny.Place, spec: Spec) -> Recipe:
    return Recipe(spec, place.network, storage.canonical(place.ranges), Resources(threads=1))


def test_a_spec_states_the_libraries_that_compute_the_network(place: tiny.Place) -> None:
    stated = spec_of(place).bf16_numerics
    assert stated is not None
    assert tuple(name for name, _ in stated.versions) == BF16_LIBRARIES
    assert stated.instructions == cpu_instructions() != ANY_INSTRUCTIONS
    assert Numerics.from_json(json.loads(json.dumps(stated.to_json()))) == stated
    assert Spec.from_json(spec_of(place).to_json()) == spec_of(place)
    every = numerics(place.network, "cpu", precision="bf16")
    assert every.in_bf16 == stated
    assert {"numba", "numpy", "pillow"} < dict(every.versions).keys()  # recorded, and not stated


def test_fp32_tells_no_instructions_apart(place: tiny.Place) -> None:
    assert numerics(place.network, "cpu").instructions == ANY_INSTRUCTIONS
    assert "instructions" not in numerics(place.network, "cpu").to_json()
    assert numerics(place.network, "cuda", precision="bf16").instructions == ANY_INSTRUCTIONS


def test_a_library_that_computes_no_network_may_have_another_version(
    place: tiny.Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_of(place)
    real = extractor.version
    monkeypatch.setattr(extractor, "_version_of", lambda of: "9.9" if of == "numpy" else real(of))
    assert spec_of(place) == spec
    maker = worker._load(recipe(place, spec), None, 8)
    maker.close()


def test_a_worker_of_another_version_is_told_which_and_what_to_do(place: tiny.Place) -> None:
    spec = spec_of(place)
    here = dict(spec.bf16_numerics.versions)["torch"] if spec.bf16_numerics else ""
    with pytest.raises(SpecMismatch) as caught:
        worker._load(recipe(place, with_versions(spec, torch="2.9.1")), None, 8)
    told = str(caught.value)
    assert f"torch is 2.9.1 there and {here} here. " in told
    assert "pip install torch==2.9.1, or a container image with these. Or build" in told
    assert told.endswith(FP32)
    assert not re.search(r"timm|torchvision|numpy", told)


def test_a_worker_of_another_cpu_is_told_so(
    place: tiny.Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_of(place)
    monkeypatch.setattr(extractor, "cpu_instructions", lambda: "none")
    with pytest.raises(
        SpecMismatch, match=r"instructions is \w+ there and none here.* the same ins"
    ):
        worker._load(recipe(place, spec), None, 8)
    assert spec_of(place).digest != spec.digest


def test_two_specs_are_told_apart_with_what_to_do(place: tiny.Place) -> None:
    mine, theirs = spec_of(place), with_versions(spec_of(place), torch="2.9.1", timm="1.0.20")
    with pytest.raises(SpecMismatch) as caught:
        theirs.require_same(mine, "a", "b")
    told = str(caught.value)
    assert (
        "a and b were not made the same way: bf16_numerics.versions.timm: '1.0.20' against" in told
    )
    assert "pip install timm==1.0.20 torch==2.9.1, or a container image with these. Or" in told
    assert told.endswith(FP32)
    with pytest.raises(SpecMismatch) as caught:
        spec_of(place, "fp32").require_same(mine, "a", "b")
    assert FP32 not in str(caught.value)
    with pytest.raises(SpecMismatch) as caught:
        mine.require_same(replace(mine, bins=9), "a", "b")
    assert str(caught.value).endswith("bins: 8 against 9")


@pytest.mark.parametrize("name", WIDEST)
def test_the_widest_instructions_are_told(name: str, tmp_path: Path) -> None:
    narrower = " ".join(WIDEST[WIDEST.index(name) :])
    assert widest_of(f"processor : 0\nflags : fpu {narrower} sse\n") == name
    assert widest_of("flags : fpu") == platform.machine()


def test_limits_that_the_environment_sets_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """They change what computes, and the CPU stays the same."""
    own = cpu_instructions()
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    cpu_instructions.cache_clear()
    try:
        assert cpu_instructions() == f"{own} ONEDNN_MAX_CPU_ISA=AVX2"
    finally:
        cpu_instructions.cache_clear()
