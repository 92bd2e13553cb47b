"""Tests files of the reference package, both ways: made by it, read by it, and damaged by hand."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import pipeline
from pipeline import interop as reference
from pipeline import networks, storage
from pipeline.building import Request, build_datasets
from pipeline.catalogue import Catalogue, garbage, verify
from pipeline.comparing import compare, notes_of, resolve_versions
from pipeline.dna import DNA
from pipeline.engine import InProcess
from pipeline.errors import Conflict, CorruptFile, NotFound, SourceError, SpecMismatch, UsageError
from pipeline.explaining import explain, suggest
from pipeline.interop import (
    converting,
    importing,
    network_shapes,
    reading,
    reference_metadata,
)
from pipeline.networks import decode_ranges, describe, find_ranges, probe, registry
from pipeline.reporting.conclusions import no_test
from pipeline.reporting.suggestion_words import suggestion_notes
from pipeline.spec import LAYER_GAUSSIAN, Preprocess, Resources
from tests.jobs.test_cli import run, vdna, vdna_json
from tests.support.builders import NUMERICS, random_dna, tiny_spec, write_photos
from tests.support.pickle_bomb import PickleBomb

torch = pytest.importorskip("torch")
original = pytest.importorskip("vdna")
from vdna import vdnas  # noqa: E402
from vdna.utils.settings import DataSettings  # noqa: E402
from vdna.utils.stats import histogram_per_channel  # noqa: E402

pytestmark = [
    # The reference leaves its json files open, and its square root is deprecated.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:The `disp` argument:DeprecationWarning"),
]
LAYERS = {"block_0": 3, "last_norm": 2}
TOKENS = 197
IMAGES = 5
QUICK = settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
KINDS = ("histogram", "gaussian", "layer-gaussian", "activation-ranges")
Data = dict[str, Any]


# Files as the reference saves them.


def histograms(
    seed: int = 0, bins: int = 7, images: int = IMAGES, layers: dict[str, int] | None = None
) -> Data:
    """Makes histograms in which every row holds images x 197 activations."""
    rng = np.random.default_rng(seed)
    shares = {la: rng.dirichlet(np.ones(bins), n) for la, n in (layers or LAYERS).items()}
    return {
        layer: torch.tensor(np.stack([rng.multinomial(images * TOKENS, p) for p in rows]))
        for layer, rows in shares.items()
    }


def gaussians(seed: int = 0, layers: dict[str, int] | None = None) -> Data:
    rng = np.random.default_rng(seed)
    return {
        layer: {
            "mu": torch.tensor(rng.normal(size=n), dtype=torch.float32),
            "var": torch.tensor(rng.gamma(1.0, size=n), dtype=torch.float32),
        }
        for layer, n in (layers or LAYERS).items()
    }


def layer_gaussians(seed: int = 0, layers: dict[str, int] | None = None) -> Data:
    """Computes layer Gaussians with the reference's own estimator."""
    from vdna.vdnas.vdna_layer_gauss import _get_gaussian_params

    rng = np.random.default_rng(seed)
    return {
        layer: _get_gaussian_params(torch.tensor(rng.normal(size=(IMAGES, n))))
        for layer, n in (layers or LAYERS).items()
    }


def extremes(seed: int = 0, layers: dict[str, int] | None = None) -> Data:
    rng = np.random.default_rng(seed)
    data = {}
    for layer, n in (layers or LAYERS).items():
        low = torch.tensor(rng.normal(size=n), dtype=torch.float32)
        data[layer] = {"min": low, "max": low + torch.rand(n)}
    return data


MAKERS: dict[str, Callable[..., Data]] = {
    "histogram": histograms,
    "gaussian": gaussians,
    "layer-gaussian": layer_gaussians,
    "activation-ranges": extremes,
}


def saved(
    path: Path,
    data: Data,
    kind: str = "histogram",
    *,
    extractor: str = "mugs_vit_base",
    images: int = IMAGES,
    crop: str = "none",
) -> Path:
    """Saves PATH.npz and PATH.json with the reference itself, and returns the path of the npz."""
    bins = next(iter(data.values())).shape[1] if kind == "histogram" else 0
    dna = vdnas.get_vdna(f"histogram-{bins}" if kind == "histogram" else kind)
    dna.data = data
    dna.feature_extractor_name = extractor
    dna.neurons_list = {
        layer: len(next(iter(v.values())) if isinstance(v, dict) else v)
        for layer, v in data.items()
    }
    dna.num_images = images
    dna.data_settings_used = DataSettings(source="/data/photos", crop_to_square_pre_resize=crop)
    dna.save(path)
    return path.with_suffix(".npz")


def saved_kind(path: Path, kind: str, seed: int = 0) -> Path:
    return saved(path, MAKERS[kind](seed), kind)


def their_arrays(path: Path | str) -> dict[str, Any]:
    """Returns what the reference loads, by the names that it saves by."""
    loaded = original.load_vdna_from_files(str(path).removesuffix(".npz"))
    found = {}
    for layer, value in loaded.data.items():
        parts = value if isinstance(value, dict) else {"": value}
        found |= {f"{part}-{layer}": tensor.numpy() for part, tensor in parts.items()}
    return found


def edit_json(npz: Path, **fields: object) -> None:
    path = npz.with_suffix(".json")
    data = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({k: v for k, v in data.items() if v is not ...}))


def place_at(tmp_path: Path) -> Catalogue:
    return Catalogue(str(tmp_path / "catalogue"))


# A built dataset, and the same exported, of every kind.


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    place = Catalogue(str(tmp_path_factory.mktemp("built")))
    requests = []
    for name, first in (("a", 0), ("b", 50)):
        folder = tmp_path_factory.mktemp(name)
        write_photos(folder, IMAGES, first_seed=first)
        requests.append(Request(name, str(folder), bins=50, exif="ignore", layer_gaussian=True))
    build_datasets(place, requests, InProcess(), Resources(workers=0, threads=2))
    return place


@pytest.fixture(scope="module")
def exported(built: Catalogue, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Exports `a` and `b` as every kind: `histogram-a.npz` and so on."""
    folder = tmp_path_factory.mktemp("exported")
    for kind in KINDS:
        for name in ("a", "b"):
            path = str(folder / f"{kind}-{name}.npz")
            assert reference.export_file(built, name, path, kind).kind == kind
    return folder


def whole(place: Catalogue, name: str) -> DNA:
    return place.load(name, layer_gaussian=True)


# Round trips.


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_a_file_of_the_reference_survives_import_and_export(
    tmp_path: Path, kind: str, seed: int
) -> None:
    """Arrays and types are equal; a covariance may lose its last bit, as its divisor is undone."""
    first = saved_kind(tmp_path / "first", kind, seed)
    place = place_at(tmp_path)
    version = reference.import_file(place, str(first), "a").version
    assert version.footers.keys() == version.sha256.keys()
    layers = place.spec(version.spec).layers[:1]
    assert place.load("a", layers=layers).identical(place.load("a").select(layers))
    reference.export_file(place, "a", str(tmp_path / "again.npz"))
    before, after = their_arrays(first), their_arrays(tmp_path / "again.npz")
    assert before.keys() == after.keys()
    for name, array in before.items():
        assert array.dtype == after[name].dtype
        np.testing.assert_allclose(
            after[name], array, rtol=5e-16 if "sigma" in name else 0, atol=0, err_msg=name
        )


@QUICK
@given(
    seed=st.integers(0, 2**32 - 1),
    bins=st.integers(2, 9),
    images=st.integers(1, 40),
    neurons=st.lists(st.integers(1, 4), min_size=1, max_size=3),
)
def test_exporting_and_importing_a_dna_changes_nothing(
    tmp_path: Path, seed: int, bins: int, images: int, neurons: list[int]
) -> None:
    """For any DNA and kind, all that the kind holds comes back, under the same spec."""
    taps = tuple(pipeline.Tap(f"layer{i}", n, i + 1) for i, n in enumerate(neurons))
    spec, ranges = tiny_spec(bins, taps)
    dna = random_dna(spec, ranges, images, seed)
    url = str(tmp_path / "x.npz")
    reference.write_dna(dna, url, "histogram")
    again = reference.read_dna(url)
    assert again.spec == spec
    clamped = dna.counts.copy()
    clamped[:, 0] += dna.underflow
    clamped[:, -1] += dna.overflow
    np.testing.assert_array_equal(again.counts, clamped)
    np.testing.assert_array_equal(again.distributions(), dna.distributions())
    reference.write_dna(dna, url, "gaussian")
    again = reference.read_dna(url, spec, ranges)
    np.testing.assert_array_equal(again.mean, dna.mean.astype(np.float32))
    if images > 1:
        np.testing.assert_allclose(again.m2, dna.m2, rtol=1e-7)
    reference.write_dna(dna, url, "activation-ranges")
    again = reference.read_dna(url, spec, ranges)
    np.testing.assert_array_equal(again.min, dna.min)
    np.testing.assert_array_equal(again.max, dna.max)
    np.testing.assert_array_equal(again.low, ranges.low)


def test_ranges_are_taken_for_a_spec_that_is_stated_or_assumed(tmp_path: Path) -> None:
    spec, ranges = tiny_spec(7, tuple(pipeline.Tap(of, n, TOKENS) for of, n in LAYERS.items()))
    stated, assumed = str(tmp_path / "stated.npz"), str(saved(tmp_path / "x", histograms()))
    reference.write_dna(random_dna(spec, ranges, 10, 0), stated)
    other = replace(ranges, high=ranges.high + 1)
    for url in (stated, assumed):
        assert "low" in reference.read_dna(url).unknown
        found = reference.read_dna(url, ranges=ranges)
        assert "low" not in found.unknown
        np.testing.assert_array_equal(found.high, ranges.high)
        with pytest.raises(UsageError, match=r"ranges \w+ have \{'layer1': 5\} neurons"):
            reference.read_dna(url, ranges=replace(ranges, taps=(("layer1", 5),)))
    one, two = (reference.read_dna(assumed, ranges=of) for of in (ranges, other))
    with pytest.raises(SpecMismatch, match=f"{ranges.digest}.*{other.digest}"):
        pipeline.emd(one, two)
    said = f"ranges {other.digest} are given, but the spec states {ranges.digest}"
    for of in (None, spec):
        with pytest.raises(UsageError, match=said):
            reference.read_dna(stated, of, other)


def test_an_export_that_ended_between_its_two_files_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """New counts must not be read with the older number of images."""
    spec, ranges = tiny_spec(9, (pipeline.Tap("layer0", 3, 2),))
    url = str(tmp_path / "x.npz")
    reference.write_dna(random_dna(spec, ranges, 10, 0), url)
    replace_one = storage.replace

    def die(uri: str, data: bytes) -> None:
        if uri.endswith(".json"):
            raise KeyboardInterrupt
        replace_one(uri, data)

    for images in (9, 11):
        monkeypatch.setattr(storage, "replace", die)
        with pytest.raises(KeyboardInterrupt):
            reference.write_dna(random_dna(spec, ranges, images, 1), url)
        with pytest.raises(CorruptFile, match=r"x\.npz: its json is of another file"):
            reference.read_dna(url)
        monkeypatch.setattr(storage, "replace", replace_one)
        reference.write_dna(random_dna(spec, ranges, images, 1), url)
        assert reference.read_dna(url).images == images


@pytest.mark.parametrize(
    ("silent", "others"),
    [([1], ""), ([1, 2], ", nor has 1 other"), ([1, 2, 0], ", nor have 2 others")],
)
def test_ranges_are_not_exported_of_a_neuron_that_has_none(
    tmp_path: Path, silent: list[int], others: str
) -> None:
    spec, ranges = tiny_spec(8, (pipeline.Tap("layer0", 3, 1),))
    dna = random_dna(spec, ranges, 4, 0)
    low, high = dna.min.copy(), dna.max.copy()
    low[silent], high[silent] = np.inf, -np.inf
    dna = replace(dna, min=low, max=high)
    said = rf"neuron layer0\[{min(silent)}\] has no finite activation{others}, so it has no range"
    with pytest.raises(UsageError, match=said):
        reference.write_dna(dna, str(tmp_path / "x.npz"), "activation-ranges")
    assert not list(tmp_path.iterdir())


def test_the_reference_computes_our_distances_from_our_exports(
    built: Catalogue, exported: Path
) -> None:
    """The reference's distances of our exported files equal ours."""
    ours = {name: whole(built, name) for name in ("a", "b")}
    loaded = {
        (kind, name): original.load_vdna_from_files(str(exported / f"{kind}-{name}"))
        for kind in KINDS
        for name in ("a", "b")
    }
    a, b = ours["a"], ours["b"]
    emd = original.EMD(loaded["histogram", "a"], loaded["histogram", "b"])
    assert float(emd) == pytest.approx(pipeline.emd(a, b), rel=1e-12)
    nfd = original.NFD(loaded["layer-gaussian", "a"], loaded["layer-gaussian", "b"])
    assert float(nfd) == pytest.approx(pipeline.nfd(a, b), rel=1e-9)
    nfd = original.NFD(loaded["gaussian", "a"], loaded["gaussian", "b"])
    assert float(nfd) == pytest.approx(pipeline.nfd(a, b), rel=1e-4)
    pair = loaded["layer-gaussian", "a"], loaded["layer-gaussian", "b"]
    fd = float(original.FD(*pair, use_neurons_from_layer="blocks.0.0"))
    assert fd == pytest.approx(pipeline.fd(a, b, layer="blocks.0.0"), rel=1e-3, abs=1e-6)
    low = loaded["activation-ranges", "a"].get_all_neurons_dists()["min"].numpy()
    np.testing.assert_array_equal(low, a.min)
    assert loaded["histogram", "a"].get_all_neurons_dists().dtype == torch.int32
    assert loaded["histogram", "a"].num_images == IMAGES
    assert loaded["histogram", "a"].neurons_list == {t.name: t.neurons for t in a.spec.taps}


def test_imported_files_have_the_distances_of_the_reference(tmp_path: Path) -> None:
    place = place_at(tmp_path)
    for kind in KINDS[:3]:
        for name, seed in (("a", 1), ("b", 2)):
            data = histograms(seed, 1000) if kind == "histogram" else MAKERS[kind](seed)
            saved(tmp_path / f"{kind}-{name}", data, kind)
            reference.import_file(place, str(tmp_path / f"{kind}-{name}.npz"), f"{kind}/{name}")
    loaded = {
        k: [original.load_vdna_from_files(tmp_path / f"{k}-{n}") for n in "ab"] for k in KINDS[:3]
    }
    a, b = place.load("histogram/a"), place.load("histogram/b")
    assert pipeline.emd(a, b) == pytest.approx(float(original.EMD(*loaded["histogram"])), rel=1e-12)
    a, b = place.load("gaussian/a"), place.load("gaussian/b")
    assert pipeline.nfd(a, b) == pytest.approx(float(original.NFD(*loaded["gaussian"])), rel=1e-5)
    a, b = whole(place, "layer-gaussian/a"), whole(place, "layer-gaussian/b")
    expected = float(original.FD(*loaded["layer-gaussian"], use_neurons_from_layer="block_0"))
    assert pipeline.fd(a, b, layer="block_0") == pytest.approx(expected, rel=1e-6)


def test_counts_beyond_int32_are_exported_whole(tmp_path: Path) -> None:
    spec, ranges = tiny_spec(taps=(pipeline.Tap("stem", 2, 1),))
    many = 3 * 2**31
    dna = random_dna(spec, ranges, 10, 0)
    counts = np.full((2, 5), many // 5, np.int64)
    counts[0] = [many - 4, 1, 1, 1, 1]
    zeros = np.zeros(2, np.int64)
    images = int(counts[1].sum())
    counts[0, 0] -= many - images
    big = replace(
        dna,
        images=images,
        counts=counts,
        **{c: zeros for c in ("underflow", "overflow", "nonfinite")},
        numerics=((dna.numerics[0][0], images),),
    )
    big.check()
    done = reference.write_dna(big, str(tmp_path / "big.npz"))
    assert "int64" in done.notes[0]
    loaded = original.load_vdna_from_files(tmp_path / "big")
    assert loaded.data["stem"].dtype == torch.int64
    np.testing.assert_array_equal(loaded.data["stem"].numpy(), counts)
    assert float(original.EMD(loaded, loaded)) == 0
    np.testing.assert_array_equal(reference.read_dna(str(tmp_path / "big.npz")).counts, counts)


def test_export_says_what_it_leaves_out(tmp_path: Path) -> None:
    spec, ranges = tiny_spec()
    dna = random_dna(spec, ranges, 3, 0)
    lost = int(dna.nonfinite.sum())
    assert lost
    done = reference.write_dna(dna, str(tmp_path / "x.npz"))
    assert done.notes == (f"{lost} activations that are not finite are left out",)
    one = random_dna(spec, ranges, 1, 0)
    assert "one image" in reference.write_dna(one, str(tmp_path / "x.npz"), "gaussian").notes[0]


@pytest.mark.parametrize("kind", KINDS)
def test_exporting_a_kind_that_the_dataset_lacks_is_refused(tmp_path: Path, kind: str) -> None:
    reference.import_file(place_at(tmp_path), str(saved_kind(tmp_path / "x", kind)), "a")
    has = {"layer-gaussian": {"layer-gaussian", "gaussian"}}.get(kind, {kind})
    for other in KINDS:
        url = str(tmp_path / f"{other}.npz")
        if other in has:
            reference.export_file(place_at(tmp_path), "a", url, other)
        else:
            with pytest.raises(UsageError, match=f"a has no {other}; it has .*{kind}"):
                reference.export_file(place_at(tmp_path), "a", url, other)
            assert not Path(url).exists()
    with pytest.raises(UsageError, match=r"\.npz"):
        reference.export_file(place_at(tmp_path), "a", str(tmp_path / "x.parquet"))


# Counts that overflowed in the reference.


def vgg(true: Any, path: Path, images: int) -> Path:
    """Saves relu_1_1 of VGG16, of 224 x 224 positions, as the reference does: cut to int32."""
    data = {"relu_1_1": torch.tensor(true)}
    return saved(path, data, extractor="vgg16", images=images)


def test_counts_that_wrapped_once_are_repaired(tmp_path: Path) -> None:
    """50,000 images give 2.5 thousand million activations a neuron, mostly in one bin of a ReLU."""
    images = 50_000
    total = images * 224 * 224
    true = np.zeros((64, 4), np.int64)
    true[:, 1] = 1000 + np.arange(64)
    true[:, 0] = total - true[:, 1]
    true[3] = [total // 4] * 4
    place = place_at(tmp_path)
    done = reference.import_file(place, str(vgg(true, tmp_path / "v", images)), "a")
    assert (np.load(tmp_path / "v.npz")["relu_1_1"] < 0).sum() == 63
    np.testing.assert_array_equal(place.load("a").counts, true)
    (note,) = done.version.notes
    assert note == "relu_1_1: counts of 63 of 64 neurons wrapped at int32, and were repaired"


@pytest.mark.parametrize(
    ("big", "why"), [(2**32 + 5, "0 counts are negative"), (2**32 + 2**31 + 5, "1 counts are")]
)
def test_counts_whose_wrapping_is_ambiguous_are_refused(tmp_path: Path, big: int, why: str) -> None:
    """The count wrapped to a positive number again, or twice to a negative one."""
    images = 150_000
    true = np.full((64, 4), images * 224 * 224 // 4, np.int64)
    rest = images * 224 * 224 - big
    true[7] = [big, 0, rest // 2, rest - rest // 2]
    path = vgg(true, tmp_path / "v", images)
    with pytest.raises(CorruptFile, match=rf"v\.npz: layer relu_1_1, neuron 7: {why}.*repaired"):
        reference.import_file(place_at(tmp_path), str(path), "a")
    assert place_at(tmp_path).names() == []


def test_a_count_that_wrapped_beside_edges_counted_twice_is_refused(tmp_path: Path) -> None:
    """The row is then not short by exactly 2^32, as if the reference had dropped NaN."""
    images = 90_000
    total = images * 224 * 224
    true = np.full((64, 4), total // 4, np.int64)
    true[7] = [2**32 + 5, 3, 0, total - 2**32 - 5]
    path = vgg(true, tmp_path / "v", images)
    with pytest.raises(CorruptFile, match=r"neuron 7: 0 counts are negative.*cannot be repaired"):
        reference.import_file(place_at(tmp_path), str(path), "a")


def test_dropped_nan_are_noted_also_where_a_count_could_wrap(tmp_path: Path) -> None:
    images = 90_000
    total = images * 224 * 224
    true = np.full((64, 4), total // 4, np.int64)
    true[7, 0] -= 1000
    path = vgg(true, tmp_path / "v", images)
    place = place_at(tmp_path)
    notes = reference.import_file(place, str(path), "a").version.notes
    assert "1 of 64 neurons hold up to 1000 activations fewer" in notes[0]
    np.testing.assert_array_equal(place.load("a").counts, true)


@QUICK
@given(
    st.lists(
        st.lists(st.integers(0, 2**34), min_size=3, max_size=3).filter(lambda row: sum(row) > 0),
        min_size=1,
        max_size=6,
    ),
    st.integers(-1000, 1000),
)
def test_unwrapping_is_right_or_refused(rows: list[list[int]], more: int) -> None:
    """For any counts, what is reported as repaired or as unchanged is the true count.

    Also if the counts are some more than the activations, or fewer.
    """
    most = max(sum(row) for row in rows)
    true = np.array([[*row, most - sum(row)] for row in rows], np.int64)
    found = true.astype(np.int32).astype(np.int64)
    wrapped = converting.unwrap_int32(found, max(most - more, 1))
    for row, was, times in zip(found, true, wrapped, strict=True):
        if times >= 0:
            np.testing.assert_array_equal(row, was)
            assert times == (was >= 2**31).sum()
        else:
            assert (was >= 2**32 - 2**31).any()


def test_edges_that_small_batches_count_twice_are_noted(tmp_path: Path) -> None:
    """The reference counts a small batch here; 0 is an inner edge of 4 bins."""
    one_draw = torch.Generator().manual_seed(0)  # in which no other value is an edge
    values = torch.rand(IMAGES, 3, TOKENS, 1, generator=one_draw) * 2 - 1
    values[0, 1, :9] = 0.0
    rows = histogram_per_channel(values, 4, [-1.0, 1.0])
    assert rows.sum(1).tolist() == [IMAGES * TOKENS, IMAGES * TOKENS + 9, IMAGES * TOKENS]
    path = saved(tmp_path / "x", {"block_0": rows})
    done = reference.import_file(place_at(tmp_path), str(path), "a")
    over, apart = done.version.notes
    assert "block_0: 1 of 3 neurons hold up to 9 activations more than 5 images x 197" in over
    assert "twice" in over
    assert "different totals, 985 to 994" in apart
    np.testing.assert_array_equal(place_at(tmp_path).load("a").counts, rows.numpy())


def test_rows_with_too_few_activations_are_noted(tmp_path: Path) -> None:
    data = histograms()
    data["block_0"][2, data["block_0"][2].argmax()] -= 4
    path = saved(tmp_path / "x", data)
    notes = reference.import_file(place_at(tmp_path), str(path), "a").version.notes
    assert "1 of 3 neurons hold up to 4 activations fewer than 5 images x 197" in notes[0]
    assert "NaN" in notes[0]


def test_rows_with_impossibly_many_activations_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "x", histograms(), images=2)
    with pytest.raises(UsageError, match="more than twice 2 images x 197 positions = 394"):
        reference.import_file(place_at(tmp_path), str(path), "a")


def test_clip_averages_its_last_norm_over_batches(tmp_path: Path) -> None:
    path = saved(tmp_path / "x", gaussians(), "gaussian", extractor="clip_im_vit_b16", images=100)
    (bins, note) = reference.import_file(place_at(tmp_path), str(path), "a").version.notes
    assert "1000 bins" in bins
    assert "last_norm" in note
    assert "the means of 2 batches, not 100 images" in note


# What is assumed, and what is stated.


def test_an_import_assumes_the_spec_of_the_reference(tmp_path: Path) -> None:
    path = saved(tmp_path / "x", histograms(), crop="center")
    version = reference.import_file(place_at(tmp_path), str(path), "a").version
    spec = place_at(tmp_path).spec(version.spec)
    assert spec.extractor == "mugs_vit_base"
    assert spec.weights_sha256 == spec.ranges_digest == "assumed: mugs_vit_base of vdna 0.1.1"
    assert [(t.name, t.neurons, t.positions) for t in spec.taps] == [
        ("block_0", 3, 197),
        ("last_norm", 2, 197),
    ]
    rule = spec.preprocess
    assert (rule.height, rule.width, rule.resize) == (224, 224, "clean")
    assert (rule.crop, rule.exif) == ("center", "ignore")
    assert spec.bins == 7
    assert version.origin == {
        "software": "vdna 0.1.1",
        "assumed": True,
        "stated": False,
        "notes": [],
        "kind": "histogram",
        "file": str(path),
        "images_from": "/data/photos",
    }
    assert place_at(tmp_path).head().default_spec == version.spec
    assert next(verify(place_at(tmp_path))).detail == (
        f"spec {version.spec} is what its digest says; it is assumed, and so are its ranges"
    )


def test_positions_of_the_references_networks(tmp_path: Path) -> None:
    for extractor, layer, positions in (
        ("clip_im_vit_b16", "last_norm", 1),
        ("clip_im_vit_b16", "block_3", 197),
        ("clip_im_vit_l14", "block_23", 257),
        ("clip_im_vit_b32", "block_0", 50),
        ("clip_im_rn50", "block_0", 3136),
        ("mugs_vit_large", "last_norm", 197),
        ("vgg16", "relu_1_1", 50176),
        ("vgg16", "relu_5_3", 196),
        ("dino_resnet50", "layer1_0", 3136),
        ("rand_resnet50", "layer4_2", 49),
        ("inception", "block_0", 5329),
        ("inception", "block_3", 1),
    ):
        path = saved(tmp_path / "x", gaussians(layers={layer: 2}), "gaussian", extractor=extractor)
        spec = reference.read_dna(str(path)).spec
        assert spec.tap(layer).positions == positions, (extractor, layer)
        assert spec.preprocess.height == (299 if extractor == "inception" else 224)


def test_different_crops_make_different_specs(tmp_path: Path) -> None:
    specs = set()
    for crop in ("none", "center", "random"):
        path = saved(tmp_path / crop, histograms(), crop=crop)
        version = reference.import_file(place_at(tmp_path), str(path), "a").version
        assert any("random crops" in note for note in version.notes) == (crop == "random")
        specs.add(version.spec)
    assert len(specs) == 3


def test_positions_of_an_own_extractor_follow_from_the_rows(tmp_path: Path) -> None:
    data = histograms(layers={"mine": 5})
    data["mine"][2, 0] += 1
    path = saved(tmp_path / "x", data, extractor="my_net")
    version = reference.import_file(place_at(tmp_path), str(path), "a").version
    assert place_at(tmp_path).spec(version.spec).tap("mine").positions == TOKENS
    assert "my_net is not a network of the reference" in version.notes[0]


def test_positions_are_whole_numbers(tmp_path: Path) -> None:
    path = saved(tmp_path / "x", histograms(), extractor="my_net", images=IMAGES + 1)
    with pytest.raises(UsageError, match="by `spec`"):
        reference.import_file(place_at(tmp_path), str(path), "a")


@pytest.mark.parametrize("kind", KINDS)
def test_unknown_positions_must_be_stated(tmp_path: Path, kind: str) -> None:
    data = MAKERS[kind]()
    if kind == "histogram":
        data["block_0"][:, 0] += torch.arange(3)
    path = saved(tmp_path / "x", data, kind, extractor="my_net")
    with pytest.raises(UsageError, match=r"x\.npz.*positions layer block_0.*by `spec`"):
        reference.import_file(place_at(tmp_path), str(path), "a")


def test_a_stated_spec_compares_with_a_built_dna(
    built: Catalogue, exported: Path, tmp_path: Path
) -> None:
    """The spec is stated by its digest, by the start of its digest, and by a file."""
    spec = built.find("a").spec
    path = tmp_path / "spec.json"
    path.write_text(json.dumps(built.spec(spec).to_json()))
    for stated, name in ((spec, "there/1"), (spec[:8], "there/2"), (str(path), "there/3")):
        file = copied(exported / "histogram-a.npz", tmp_path / "x.npz")
        edit_json(file, spec=..., spec_digest=..., vdna_version="0.1.1")
        version = reference.import_file(built, str(file), name, stated).version
        assert (version.spec, version.origin["assumed"], version.notes) == (spec, False, ())
        assert version.origin["stated"]
        dna = built.load(name)
        assert pipeline.emd(dna, built.load("b")) == pytest.approx(
            pipeline.emd(built.load("a"), built.load("b")), rel=1e-12
        )
        np.testing.assert_array_equal(dna.low, built.load("a").low)
        assert "low" not in dna.unknown
        with pytest.raises(UsageError, match="Gaussian"):
            pipeline.nfd(dna, built.load("b"))
    matrix = compare(built, ["there/1", "a", "b"])
    assert matrix.of()[0, 1] == 0
    assert matrix.of()[0, 2] == matrix.of()[1, 2]
    rows = {(r["a"], r["b"], r["layer"]): r for r in matrix.table.to_pylist()}
    assert rows["there/1", "b", "all"]["nfd"] is None
    assert rows["there/1", "there/1", "all"]["nfd"] is None
    assert rows["a", "b", "all"]["nfd"] > 0


def test_our_own_exports_state_their_spec(built: Catalogue, exported: Path, tmp_path: Path) -> None:
    version = reference.import_file(built, str(exported / "layer-gaussian-a.npz"), "own").version
    assert version.spec == built.find("a").spec
    assert (version.origin["assumed"], version.origin["stated"]) == (False, False)
    again, before = whole(built, "own"), whole(built, "a")
    np.testing.assert_array_equal(again.mean, before.mean)
    np.testing.assert_allclose(again.scatter, before.scatter, rtol=1e-15)
    elsewhere = place_at(tmp_path)
    version = reference.import_file(elsewhere, str(exported / "histogram-a.npz"), "own").version
    assert "are not in this catalogue" in version.notes[0]
    assert "low" in elsewhere.load("own").unknown
    for place, of_ranges in (
        (built, "and its ranges are what their digests say"),
        (elsewhere, "is what its digest says; its ranges are not here"),
    ):
        spec_found, counts_found = verify(place, ["own"])
        assert spec_found.ok
        assert spec_found.detail.endswith(of_ranges)
        assert counts_found.ok
        assert "imported, for" in counts_found.detail


def test_an_assumed_spec_is_not_compared_with_a_built_one(
    built: Catalogue, exported: Path, tmp_path: Path
) -> None:
    file = copied(exported / "histogram-a.npz", tmp_path / "x.npz")
    edit_json(file, spec=..., spec_digest=..., vdna_version="0.1.1")
    reference.import_file(built, str(file), "assumed")
    with pytest.raises(SpecMismatch, match=r"ranges_digest: .*assumed.*weights_sha256: "):
        compare(built, ["a", "assumed"])


def copied(npz: Path, to: Path) -> Path:
    to.write_bytes(npz.read_bytes())
    to.with_suffix(".json").write_bytes(npz.with_suffix(".json").read_bytes())
    return to


def reference_spec(layers: dict[str, int] | None = None, **fields: Any) -> pipeline.Spec:
    """Makes the spec of `saved`'s files, with weights and ranges that the files do not state."""
    taps = tuple(pipeline.Tap(layer, n, TOKENS) for layer, n in (layers or LAYERS).items())
    rule = Preprocess(224, 224, *networks.IMAGENET_RULE, exif="ignore")
    return replace(
        tiny_spec(7, taps)[0], **({"extractor": "mugs_vit_base"} | fields), preprocess=rule
    )


def stated_in(tmp_path: Path, change: Callable[[dict[str, Any]], None], **fields: Any) -> str:
    """Writes a spec file that fits the files of `saved`, after a change."""
    data = reference_spec(**fields).to_json()
    change(data)
    path = tmp_path / "spec.json"
    path.write_text(json.dumps(data))
    return str(path)


BF16 = {"precision": "bf16", "bf16_numerics": NUMERICS.to_json()}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda d: None, None, ""),
        (lambda d: d.update(bins=9), UsageError, "bins: 7 against 9"),
        (lambda d: d["taps"][0].update(neurons=4), UsageError, "'block_0': 3.*'block_0': 4"),
        (lambda d: d["taps"].pop(), UsageError, "'last_norm': 2"),
        (lambda d: d["preprocess"].update(crop="center"), UsageError, "crop: 'none' against 'cent"),
        (lambda d: d["preprocess"].update(resize="fast"), UsageError, "resize: 'clean' against"),
        (
            lambda d: d["preprocess"].update(exif="apply"),
            UsageError,
            "EXIF, which vdna 0.1.1 ignores: 'ignore' against 'apply'",
        ),
        (lambda d: d["preprocess"].update(alpha="white"), UsageError, "'drop' against 'white'"),
        (lambda d: d["preprocess"].update(colour="lab"), UsageError, "'rgb8-1' against 'lab'"),
        (lambda d: d["preprocess"].update(decoder="raw@1"), UsageError, "Pillow: None against 'ra"),
        (lambda d: d["preprocess"].update(height=384), UsageError, r"\(224, 224\) against \(384"),
        (lambda d: d["preprocess"].update(std=[1, 1, 1]), UsageError, r"0.225.* against .*1, 1"),
        (lambda d: d.update(BF16), UsageError, "precision, .*: 'fp32' against 'bf16'"),
        (
            lambda d: d.update(extractor="dino_vit_base"),
            UsageError,
            "extractor: 'mugs_vit_base' against 'dino_vit_base'",
        ),
        (
            lambda d: d.update(extractor="efficientnet_lite0"),
            UsageError,
            "extractor: 'mugs_vit_base' against 'efficientnet_lite0'",
        ),
        (lambda d: d["taps"][1].update(positions=196), UsageError, "last_norm: 197 against 196"),
        (lambda d: d["taps"][1].update(positions=0), UsageError, "last_norm has 0 positions"),
        (lambda d: d["taps"][1].update(positions=2**62), UsageError, "last_norm has 4.* positions"),
        (lambda d: d.pop("taps"), CorruptFile, "spec.json: not a spec"),
    ],
)
@pytest.mark.parametrize("kind", ["histogram", "gaussian"])
def test_a_stated_spec_must_fit_the_file(
    tmp_path: Path,
    kind: str,
    change: Callable[[dict[str, Any]], None],
    error: Any,
    message: str,
) -> None:
    path, spec = saved_kind(tmp_path / "x", kind), stated_in(tmp_path, change)
    if error is None:
        version = reference.import_file(place_at(tmp_path), str(path), "a", spec).version
        assert (version.origin["assumed"], version.origin["stated"]) == (False, True)
        return
    if kind == "gaussian" and "bins" in message:
        return  # that kind has no such field
    with pytest.raises(error, match=message):
        reference.import_file(place_at(tmp_path), str(path), "a", spec)
    assert place_at(tmp_path).names() == []


def test_a_stated_spec_of_an_own_extractor_is_checked_by_rows_and_name(tmp_path: Path) -> None:
    """The user states its input and name; the number of positions must be that of the rows."""
    path = saved(tmp_path / "x", histograms(), extractor="my_net")

    def own(data: dict[str, Any]) -> None:
        data["preprocess"].update(height=64, mean=[0.5, 0.5, 0.5])

    spec = stated_in(tmp_path, own, extractor="timm:resnet18")
    notes = reference.import_file(place_at(tmp_path), str(path), "a", spec).version.notes
    assert notes[0] == "the file calls its network my_net; the spec, timm:resnet18"
    spec = stated_in(tmp_path, lambda d: d["taps"][0].update(positions=196))
    with pytest.raises(UsageError, match="positions of layer block_0: 197 against 196"):
        reference.import_file(place_at(tmp_path), str(path), "b", spec)


def test_positions_follow_from_most_rows(tmp_path: Path) -> None:
    """Rows that disagree with the rest are noted; a spec that disagrees with most is refused."""
    layers = {"mine": 5}
    data = histograms(layers=layers)
    data["mine"][:2, 0] += IMAGES * 3
    path = saved(tmp_path / "x", data, extractor="my_net")
    spec = stated_in(tmp_path, lambda d: None, layers=layers)
    notes = reference.import_file(place_at(tmp_path), str(path), "a", spec).version.notes
    assert any("2 of 5 neurons hold up to 15 activations more" in note for note in notes)
    data["mine"][2:, 0] += IMAGES * 3
    saved(tmp_path / "x", data, extractor="my_net")
    with pytest.raises(UsageError, match="positions of layer mine: 200 against 197"):
        reference.import_file(place_at(tmp_path), str(path), "a", spec)


def test_clip_in_half_precision_is_noted(tmp_path: Path) -> None:
    path = saved(tmp_path / "x", gaussians(), "gaussian", extractor="clip_im_vit_b16")

    def clip(data: dict[str, Any]) -> None:
        mean, std = networks.CLIP_RULE
        data["preprocess"].update(mean=mean, std=std)
        data["taps"][1].update(positions=1)

    spec = stated_in(tmp_path, clip, extractor="clip_im_vit_b16")
    notes = reference.import_file(place_at(tmp_path), str(path), "a", spec).version.notes
    assert any("vdna 0.1.1 runs CLIP in fp16" in note for note in notes)


def test_our_export_is_imported_under_its_own_spec_only(
    built: Catalogue, exported: Path, tmp_path: Path
) -> None:
    file = exported / "histogram-a.npz"
    spec = built.spec(built.find("a").spec)
    path = tmp_path / "spec.json"
    path.write_text(json.dumps(spec.to_json() | {"weights_sha256": "ab" * 32}))
    with pytest.raises(SpecMismatch, match=r"weights_sha256: .* against 'abab"):
        reference.import_file(place_at(tmp_path), str(file), "a", str(path))
    upright = replace(spec, preprocess=replace(spec.preprocess, exif="apply"))
    reference.write_dna(replace(built.load("a"), spec=upright), str(tmp_path / "upright.npz"))
    assert reference.read_dna(str(tmp_path / "upright.npz")).spec == upright


def test_a_stated_spec_replaces_the_assumed_one_of_an_export(tmp_path: Path) -> None:
    place = place_at(tmp_path)
    reference.import_file(place, str(saved(tmp_path / "x", histograms())), "a")
    again = str(tmp_path / "again.npz")
    reference.export_file(place, "a", again)
    assert reference.import_file(place, again, "b").version.origin["assumed"]
    spec = stated_in(tmp_path, lambda d: None)
    assert not reference.import_file(place, again, "c", spec).version.origin["assumed"]
    spec = stated_in(tmp_path, lambda d: d["preprocess"].update(exif="apply"))
    with pytest.raises(UsageError, match="EXIF"):
        reference.import_file(place, again, "d", spec)


def test_ranges_of_other_layers_than_the_specs_are_refused(
    built: Catalogue, tmp_path: Path
) -> None:
    path = saved(tmp_path / "x", histograms())
    other = built.spec(built.find("a").spec).ranges_digest
    spec = stated_in(tmp_path, lambda d: d.update(ranges_digest=other))
    with pytest.raises(UsageError, match=f"ranges {other} have .*block_0"):
        reference.import_file(built, str(path), "z", spec)


WRONG: tuple[Any, ...] = (
    *(None, True, -1, 5, 2.5, 10**30, float("nan"), float("inf"), "", "text", "\ud800"),
    *([], [5], ["a", "b", "c"], [[1, 2]], {}, {"a": 1}, {"spec": {}}),
)
FITTING = {
    "extractor": ("text",),
    "weights_sha256": ("text",),
    "ranges_digest": ("text",),
    "preprocess.mean": (),
    "preprocess.std": (),
    "preprocess.resize": (),
    "preprocess.crop": (),
    "preprocess.colour": ("text",),
    "preprocess.exif": (),
    "preprocess.height": (5,),
    "preprocess.width": (5,),
    "preprocess.max_bytes": (5,),
    "preprocess.max_pixels": (5,),
    "preprocess": (),
    "taps": (),
    "taps.0": (),
    "taps.0.name": ("text",),
    "taps.0.neurons": (5,),
    "taps.0.positions": (5,),
    "bins": (5,),
    "precision": (),
    "counting": (5,),
    "bf16_numerics": (),
    "bf16_numerics.device": ("text",),
    "bf16_numerics.compiled": (True,),
    "bf16_numerics.folded": (True,),
    "bf16_numerics.micro_batch": (5,),
    "bf16_numerics.threads": (5,),
    "bf16_numerics.resized": ("text",),
    "bf16_numerics.versions": ({},),
    "bf16_numerics.versions.torch": ("text",),
}
"""The values of `WRONG` that are right for some fields of a bf16 spec, by field."""


def put(data: Any, field: str, value: Any) -> Any:
    """Returns a copy of the JSON with another value in the field."""
    head, _, rest = field.partition(".")
    copy = list(data) if isinstance(data, list) else dict(data)
    at: Any = int(head) if isinstance(data, list) else head
    copy[at] = put(data[at], rest, value) if rest else value
    return copy


@pytest.mark.parametrize("field", FITTING)
def test_a_spec_with_wrong_types_is_corrupt(tmp_path: Path, field: str) -> None:
    """This holds for a spec file and for the JSON of an export; there is never a traceback."""
    good = replace(reference_spec(), precision="bf16", bf16_numerics=NUMERICS).to_json()
    npz, path = saved(tmp_path / "x", histograms()), tmp_path / "spec.json"
    for value in WRONG:
        if any(repr(value) == repr(right) for right in FITTING[field]):
            continue
        data = put(good, field, value)
        path.write_text(json.dumps(data))
        with pytest.raises(CorruptFile, match=r"spec\.json"):
            reference.import_file(place_at(tmp_path), str(npz), "a", str(path))
        edit_json(npz, spec=data)
        with pytest.raises(CorruptFile, match=r"x\.npz: spec of its json"):
            reference.import_file(place_at(tmp_path), str(npz), "a")
        edit_json(npz, spec=...)


@QUICK
@given(
    field=st.sampled_from(sorted(FITTING)),
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=6,
    ),
    bf16=st.booleans(),
)
def test_any_json_is_a_spec_or_refused(tmp_path: Path, field: str, value: Any, bf16: bool) -> None:
    fp32 = {} if bf16 or field.startswith("bf16_") else {"precision": "fp32", "bf16_numerics": None}
    good = replace(reference_spec(), precision="bf16", bf16_numerics=NUMERICS).to_json() | fp32
    npz, path = saved_kind(tmp_path / "x", "gaussian"), tmp_path / "spec.json"
    path.write_text(json.dumps(put(good, field, value)))
    message = ""
    try:
        reference.import_file(place_at(tmp_path), str(npz), "a", str(path))
    except (CorruptFile, UsageError) as error:
        message = str(error)
    assert not message or "spec.json" in message or "x.npz" in message


def test_an_unknown_stated_spec_is_named(tmp_path: Path) -> None:
    path = saved(tmp_path / "x", histograms())
    with pytest.raises(NotFound, match="0 specs"):
        reference.import_file(place_at(tmp_path), str(path), "a", "abc")


# What a kind does not state.


@pytest.mark.parametrize("kind", KINDS)
def test_columns_that_a_kind_lacks_are_unknown(tmp_path: Path, kind: str) -> None:
    path = saved_kind(tmp_path / "x", kind)
    version = reference.import_file(place_at(tmp_path), str(path), "a").version
    dna = place_at(tmp_path).load("a")
    columns = {"counts", "underflow", "overflow", "nonfinite", "low", "high"}
    columns |= {"min", "max", "mean", "m2", "numerics"}
    assert set(dna.unknown) == columns - set(reference_metadata.TELLS[kind])
    assert version.products == reference_metadata.PRODUCTS_OF[kind]
    assert (LAYER_GAUSSIAN in version.products) == (kind == "layer-gaussian")
    uri = storage.join(place_at(tmp_path).root, "layer_gaussians")
    assert storage.is_folder(uri) == (kind == "layer-gaussian")


def test_distances_that_need_what_is_unknown_are_refused_or_null(tmp_path: Path) -> None:
    """All kinds get one assumed spec, also those without histograms."""
    place = place_at(tmp_path)
    for kind in KINDS:
        for name in "ab":
            seed = ord(name)
            data = histograms(seed, 1000) if kind == "histogram" else MAKERS[kind](seed)
            path = saved(tmp_path / f"{kind}{name}", data, kind)
            reference.import_file(place, str(path), f"{kind}/{name}")
    for kind in KINDS:
        a, b = place.load(f"{kind}/a"), place.load(f"{kind}/b")
        for distance, needs in (
            (pipeline.emd, {"histogram"}),
            (pipeline.nfd, {"gaussian", "layer-gaussian"}),
            (pipeline.fd, set[str]()),
        ):
            if kind in needs:
                assert distance(a, b) > 0
            else:
                with pytest.raises(UsageError, match="has no"):
                    distance(a, b)
    with pytest.raises(UsageError, match="has no"):
        pipeline.emd(place.load("histogram/a"), place.load("gaussian/a"))
    for row in compare(place).table.to_pylist():
        kinds = {row["a"].partition("/")[0], row["b"].partition("/")[0]}
        assert (row["emd"] is not None) == (kinds == {"histogram"}), row
        assert (row["nfd"] is not None) == (kinds <= {"gaussian", "layer-gaussian"}), row


def test_it_is_said_that_a_dataset_has_no_histograms(tmp_path: Path) -> None:
    place = place_at(tmp_path)
    for name, kind in (("a", "histogram"), ("b", "histogram"), ("bare", "gaussian")):
        data = histograms(ord(name[0]), 1000) if kind == "histogram" else gaussians()
        reference.import_file(place, str(saved(tmp_path / name, data, kind)), name)
    _, versions = resolve_versions(place)
    assert "no EMD is known, as they were imported without histograms: bare" in notes_of(versions)
    assert not [note for note in notes_of({"a": versions["a"]}) if "histograms" in note]
    with pytest.raises(UsageError, match=r"^bare has no histograms .*imported from .*bare\.npz"):
        explain(place, "a", "bare")
    pair = compare(place, ["a", "bare"])
    assert "one of the datasets has no histograms, or a neuron" in no_test(pair)
    found = suggest(place, "a")
    assert found.undefined == ("bare",)
    (said,) = (note for note in suggestion_notes(found) if note.endswith(": bare."))
    assert "one of the datasets has no histograms" in said


def test_one_image_has_no_variance_whatever_is_stored(tmp_path: Path) -> None:
    data = gaussians()
    for layer in data.values():
        layer["var"][:] = float("nan")
    path = saved(tmp_path / "x", data, "gaussian", images=1)
    reference.import_file(place_at(tmp_path), str(path), "a")
    assert not place_at(tmp_path).load("a").m2.any()


def test_extremes_make_ranges_as_the_reference_scales_them(tmp_path: Path) -> None:
    from vdna.networks.feature_extraction_model import get_pre_hist_norm_params_from_min_max

    data = extremes()
    path = saved(tmp_path / "x", data, "activation-ranges")
    done = reference.import_file(place_at(tmp_path), str(path), "a")
    uri = place_at(tmp_path).ranges_uri(done.ranges or "")
    ranges, metadata = decode_ranges(storage.read(uri), uri)
    assert metadata["weights_sha256"] == "assumed: mugs_vit_base of vdna 0.1.1"
    ends = {
        end: {la: dict(enumerate(d[end[:3]].double().tolist())) for la, d in data.items()}
        for end in ("mins_per_neuron", "maxs_per_neuron")
    }
    centres, halves = get_pre_hist_norm_params_from_min_max(ends, 1.2)
    centre = torch.cat([c.flatten() for c in centres.values()]).numpy()
    half = torch.cat([h.flatten() for h in halves.values()]).numpy()
    np.testing.assert_allclose(ranges.low, centre - half, rtol=1e-15)
    np.testing.assert_allclose(ranges.high, centre + half, rtol=1e-15)


def test_a_build_counts_with_the_ranges_of_imported_extremes(
    built: Catalogue, exported: Path, tmp_path: Path
) -> None:
    """The ranges are named for the network, but for no weights: the user says that they fit."""
    place, source = place_at(tmp_path), built.find("a").source
    file = copied(exported / "activation-ranges-a.npz", tmp_path / "x.npz")
    edit_json(file, spec=..., spec_digest=..., vdna_version="0.1.1")
    with pytest.raises(UsageError, match="by `spec`"):
        reference.import_file(place, str(file), "x")
    stated = tmp_path / "spec.json"
    assumed = {"weights_sha256": "assumed: efficientnet_lite0", "ranges_digest": "assumed: its"}
    stated.write_text(json.dumps(built.spec(built.find("a").spec).to_json() | assumed))
    for spec in (str(stated), None):
        if spec is None:  # its own spec, whose weights are the network's
            file = exported / "activation-ranges-a.npz"
        done = reference.import_file(place, str(file), "x", spec)
        ask = Request("built", source, bins=50, ranges=done.ranges, spec="new")
        (result,) = build_datasets(place, [ask], InProcess(), Resources(workers=0, threads=2))
        assert place.spec(result.version.spec).ranges_digest == done.ranges
        dna = place.load("built", spec=result.version.spec)
        assert not dna.overflow[dna.max >= 0].any()  # about zero, it cuts the others
        assert not dna.underflow[dna.min <= 0].any()


def test_imported_ranges_of_another_network_are_refused(tmp_path: Path) -> None:
    path = saved_kind(tmp_path / "x", "activation-ranges")
    digest = reference.import_file(place_at(tmp_path), str(path), "a").ranges or ""
    known = {digest: place_at(tmp_path).ranges_uri(digest)}
    with pytest.raises(SpecMismatch, match=r"mugs_vit_base with weights.*assumed"):
        find_ranges(describe("efficientnet_lite0"), digest, known)


def test_a_single_neuron_without_its_dimension_is_read(tmp_path: Path) -> None:
    data = {"block_0": {"min": torch.tensor(1.0), "max": torch.tensor(2.0)}}
    path = tmp_path / "x.npz"
    saved(
        tmp_path / "x",
        {"block_0": {k: v[None] for k, v in data["block_0"].items()}},
        "activation-ranges",
    )
    np.savez(path, **{"min-block_0": np.float32(1), "max-block_0": np.float32(2)})
    assert reference.read_dna(str(path)).max.tolist() == [2.0]


# Forged files, and files that would run code.


def test_pickled_objects_are_refused_and_not_run(tmp_path: Path) -> None:
    npz = saved(tmp_path / "x", histograms())
    mark = tmp_path / "ran"
    objects = np.array([PickleBomb(mark)] * 3, dtype=object)
    np.savez(npz, block_0=objects, last_norm=np.zeros((2, 7), np.int32))
    with pytest.raises(CorruptFile, match=r"x\.npz: array block_0 holds pickled Python objects"):
        reading.read_file(str(npz))
    npz.write_bytes(pickle.dumps(PickleBomb(mark)))
    with pytest.raises(CorruptFile, match=r"x\.npz: torn, or not a file of arrays"):
        reading.read_file(str(npz))
    assert not mark.exists()
    pickle.loads(npz.read_bytes())  # the bomb does work
    assert mark.exists()


def test_numpy_refuses_pickled_objects_even_without_our_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    npz, mark = saved(tmp_path / "x", histograms()), tmp_path / "ran"
    objects = np.array([PickleBomb(mark)] * 3, dtype=object)
    np.savez(npz, block_0=objects, last_norm=np.zeros((2, 7), np.int32))
    monkeypatch.setattr(reading, "_check_header", lambda *args: None)
    with pytest.raises(CorruptFile, match=r"x\.npz: torn"):
        reading.read_file(str(npz))
    assert not mark.exists()


def test_the_pickled_dicts_that_the_reference_saves_are_not_run(tmp_path: Path) -> None:
    """The reference saves an empty dict a layer beside the arrays of Gaussians and extremes."""
    npz = saved_kind(tmp_path / "x", "gaussian")
    with np.load(npz) as arrays:
        assert "block_0" in arrays.files
    mark = tmp_path / "ran"
    bite = np.array([PickleBomb(mark)], dtype=object)
    np.savez(npz, block_0=bite, **reading.read_file(str(npz)).arrays)
    assert set(reading.read_file(str(npz)).arrays) == {
        f"{what}-{layer}" for what in ("mu", "var") for layer in LAYERS
    }
    assert not mark.exists()


@pytest.mark.parametrize("part", [0.0, 0.01, 0.3, 0.6, 0.9, 0.999])
def test_a_torn_npz_is_refused(tmp_path: Path, part: float) -> None:
    npz = saved(tmp_path / "x", histograms())
    data = npz.read_bytes()
    npz.write_bytes(data[: int(len(data) * part)])
    with pytest.raises(CorruptFile, match=r"x\.npz: torn"):
        reading.read_file(str(npz))


def test_any_flipped_byte_is_found_or_harmless(tmp_path: Path) -> None:
    """The zip's checksums find it: numbers never change, and no other kind of error is raised."""
    npz = saved(tmp_path / "x", histograms())
    good, data = reading.read_file(str(npz)).arrays, npz.read_bytes()
    found = 0
    for at in range(0, len(data), 5):
        npz.write_bytes(data[:at] + bytes([data[at] ^ 0x41]) + data[at + 1 :])
        try:
            arrays = reading.read_file(str(npz)).arrays
        except CorruptFile:
            found += 1
        else:
            assert all(np.array_equal(arrays[k], good[k]) for k in good), at
    assert found > 50


def test_a_header_that_claims_more_data_than_the_file_has_is_refused(tmp_path: Path) -> None:
    npz = saved(tmp_path / "x", histograms())
    edit_json(npz, neurons_list={"block_0": 10**9, "last_norm": 2})
    buffer = io.BytesIO()
    header = {"descr": "<i4", "fortran_order": False, "shape": (10**9, 7)}
    np.lib.format.write_array_header_1_0(buffer, header)
    with zipfile.ZipFile(npz, "w") as archive:
        archive.writestr("block_0.npy", buffer.getvalue())
        small = io.BytesIO()
        np.save(small, np.zeros((2, 7), np.int32))
        archive.writestr("last_norm.npy", small.getvalue())
    with pytest.raises(CorruptFile, match=r"x\.npz: torn"):
        reading.read_file(str(npz))


@pytest.mark.parametrize("kind", KINDS)
def test_arrays_that_contradict_the_json_are_refused(tmp_path: Path, kind: str) -> None:
    npz = saved_kind(tmp_path / "x", kind)
    arrays = dict(reading.read_file(str(npz)).arrays)
    name = sorted(arrays)[0]

    def refused(changed: dict[str, Any], message: str) -> None:
        np.savez(npz, **changed)
        with pytest.raises(CorruptFile, match=message):
            reading.read_file(str(npz))

    refused({k: v for k, v in arrays.items() if k != name}, rf"x\.npz: has no array {name}")
    refused(arrays | {"odd": arrays[name]}, "holds odd, which its json does not name")
    refused(arrays | {name: arrays[name][:-1]}, rf"array {name} has shape \(2.* must have \(3")
    refused(arrays | {name: arrays[name][None]}, rf"array {name} has shape \(1, 3")
    other = np.float32 if kind == "histogram" else np.int32
    refused(arrays | {name: arrays[name].astype(other)}, rf"array {name} has type .*must have")
    refused(arrays | {name: arrays[name].astype("U4")}, rf"array {name} has type <U4")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_neurons_that_move_together_or_never_are_imported(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    from vdna.vdnas.vdna_layer_gauss import _get_gaussian_params

    moves = torch.tensor(np.random.default_rng(0).normal(size=IMAGES)) * 1e-3 + 100
    never = torch.full((IMAGES,), 0.1)
    rows = torch.stack([moves, 1000 * moves, -moves, never, 1e6 * never], 1).to(dtype)
    data = {"block_0": _get_gaussian_params(rows)}
    npz = saved(tmp_path / "x", data, "layer-gaussian")
    assert reference.import_file(place_at(tmp_path), str(npz), "a").version.images == IMAGES


@pytest.mark.parametrize("kind", KINDS)
def test_a_raw_member_that_hides_an_array_is_refused(tmp_path: Path, kind: str) -> None:
    npz = saved_kind(tmp_path / "x", kind)
    name = sorted(reading.read_file(str(npz)).arrays)[0]
    larger = io.BytesIO()
    np.save(larger, np.zeros((3, 70), np.int32))
    for content in (b"raw bytes", larger.getvalue()):
        with zipfile.ZipFile(shutil.copy(npz, tmp_path / "y.npz"), "a") as archive:
            archive.writestr(name, content)
        shutil.copy(npz.with_suffix(".json"), tmp_path / "y.json")
        with pytest.raises(CorruptFile, match=rf"y\.npz: holds {name}, which is no array"):
            reading.read_file(str(tmp_path / "y.npz"))


def test_impossible_numbers_are_refused(tmp_path: Path) -> None:
    def refused(data: Data, kind: str, message: str) -> None:
        path = saved(tmp_path / "x", data, kind)
        with pytest.raises(CorruptFile, match=message):
            reference.import_file(place_at(tmp_path), str(path), "a")

    data = gaussians()
    data["last_norm"]["var"][1] = -1
    refused(data, "gaussian", r"neuron last_norm\[1\] has a negative variance")
    data = layer_gaussians()
    data["block_0"]["sigma"][0, 2] += 1
    refused(data, "layer-gaussian", "sigma-block_0 is not symmetric: .* at .0, 2.")
    for value in (float("nan"), float("inf")):
        data = gaussians()
        data["last_norm"]["var"][1] = value
        refused(data, "gaussian", rf"neuron last_norm\[1\] has the variance {value}")
        data = gaussians()
        data["last_norm"]["mu"][1] = value
        refused(data, "gaussian", rf"neuron last_norm\[1\] has the mean {value}")
    for value in (float("nan"), float("inf"), 50, -50):
        data = layer_gaussians()
        data["block_0"]["sigma"][0, 2] = data["block_0"]["sigma"][2, 0] = value
        refused(data, "layer-gaussian", r"sigma-block_0 at .0, 2. is .*, which no variances allow")
    data = layer_gaussians()
    data["block_0"]["sigma"][1, 1] = float("nan")
    refused(data, "layer-gaussian", r"sigma-block_0 at .0, 1. is .*, which no variances allow")
    data = extremes()
    data["last_norm"]["min"][0] = float("nan")
    refused(data, "activation-ranges", r"neuron last_norm\[0\] ranges from nan")
    data = histograms()
    data["block_0"][1, 2] = -3
    refused(data, "histogram", "layer block_0, neuron 1: 1 counts are negative")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"type": ...}, "type is missing in {"),
        ({"type": "median"}, "type is 'median': it must be 'histogram', 'gaussian'"),
        ({"vdna_version": ...}, "vdna_version is missing"),
        (
            {"feature_extractor_name": 3},
            "extractor_name is 3: it must be text",
        ),
        (
            {"feature_extractor_name": "\ud800"},
            "extractor_name is .*: Input should be a valid string",
        ),
        ({"num_images": ...}, "num_images is missing"),
        ({"num_images": 0}, "num_images is 0"),
        ({"num_images": True}, "num_images is True"),
        ({"num_images": 10**15}, "num_images is 1000000000000000"),
        ({"num_images": "5"}, "num_images is '5'"),
        ({"neurons_list": ...}, "neurons_list is missing"),
        ({"neurons_list": {}}, "neurons_list is {}"),
        ({"neurons_list": {"block_0": -3}}, "neurons_list.block_0 is -3"),
        ({"neurons_list": {"\ud800": 3}}, "neurons_list.* is .*: Input should be a valid string"),
        ({"neurons_list": {"block_0": 2.5}}, "neurons_list.block_0 is 2.5"),
        ({"distribution": {}}, "distribution.hist_nb_bins is missing in {}"),
        ({"distribution": {"hist_nb_bins": 1}}, "distribution.hist_nb_bins is 1"),
        ({"data_settings": []}, r"data_settings is \[\]: it must have fields with names"),
        ({"data_settings": {"crop_to_square_pre_resize": "left"}}, "crop_.* is 'left'"),
        ({"data_settings": {"resize_mode": ["clean"]}}, "resize_mode is .'clean'."),
        ({"extraction_settings": None}, "extraction_settings is None"),
    ],
)
def test_json_without_required_fields_is_refused(
    tmp_path: Path, fields: dict[str, Any], message: str
) -> None:
    npz = saved(tmp_path / "x", histograms())
    edit_json(npz, **fields)
    with pytest.raises(CorruptFile, match=rf"x\.json: .*{message}"):
        reading.read_file(str(npz))


def test_invalid_or_missing_json_is_refused(tmp_path: Path) -> None:
    npz = saved(tmp_path / "x", histograms())
    about = npz.with_suffix(".json")
    for text in (b"", b"{", b"[1]", b"\xff\xfe", b"[" * 100_000):
        about.write_bytes(text)
        with pytest.raises(CorruptFile, match=r"x\.json: "):
            reading.read_file(str(npz))
    about.unlink()
    with pytest.raises(SourceError, match=r"x\.json"):
        reading.read_file(str(npz))
    with pytest.raises(UsageError, match=r"name the \.npz"):
        reading.read_file(str(about))


def test_legacy_resizes_are_refused(tmp_path: Path) -> None:
    npz = saved(tmp_path / "x", histograms())
    edit_json(npz, data_settings={"resize_mode": "legacy_pytorch"})
    with pytest.raises(UsageError, match="resize_mode is 'legacy_pytorch'"):
        reference.read_dna(str(npz))


def test_files_are_read_from_any_url_that_storage_reads(tmp_path: Path) -> None:
    npz = saved(tmp_path / "x", histograms())
    for suffix in (".npz", ".json"):
        storage.replace(f"memory://ref/x{suffix}", npz.with_suffix(suffix).read_bytes())
    found = reading.read_file("memory://ref/x.npz")
    assert found.name == "memory://ref/x.npz"
    assert found.images == IMAGES


# In the catalogue.


def test_an_import_never_replaces_a_built_dataset(built: Catalogue, exported: Path) -> None:
    before = built.head()
    with pytest.raises(Conflict, match=r"a was built here under spec .*another name"):
        reference.import_file(built, str(exported / "histogram-b.npz"), "a")
    assert built.head() == before


def test_an_import_replaces_an_imported_dataset_and_keeps_its_history(tmp_path: Path) -> None:
    place = place_at(tmp_path)
    first, second = (saved(tmp_path / f"{i}", histograms(i)) for i in range(2))
    assert reference.import_file(place, str(first), "a").changed
    assert not reference.import_file(place, str(first), "a").changed
    old = place.load("a")
    assert reference.import_file(place, str(second), "a").changed
    assert not place.load("a").identical(old)
    assert place.load("a", at=1).identical(old)
    assert [commit.action for commit in place.log()] == ["import a", "import a"]


def test_importing_a_file_again_keeps_the_bytes_that_earlier_commits_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another release of a library writes the same numbers in other bytes. A damaged file is
    replaced by these.
    """
    place = place_at(tmp_path)
    first, second = (saved(tmp_path / f"{i}", histograms(i)) for i in range(2))
    for path in (first, second):
        reference.import_file(place, str(path), "a")
    encode = importing.encode_dna
    monkeypatch.setattr(importing, "encode_dna", lambda *_, **of: encode(*_, **of, release=2))
    assert reference.import_file(place, str(first), "a").changed
    assert place.load("a").identical(place.load("a", at=1))
    version = place.find("a")
    assert version.sha256 == place.find("a", at=1).sha256
    storage.replace(place.uri("dna", version.spec, "a", version.dna), b"damaged")
    reference.import_file(place, str(first), "a")
    assert place.find("a").sha256 != version.sha256
    assert place.load("a").images == IMAGES


def test_a_build_replaces_an_imported_dataset(
    built: Catalogue, exported: Path, tmp_path: Path
) -> None:
    """An import that would replace the built dataset is refused."""
    place = place_at(tmp_path)
    reference.import_file(place, str(exported / "layer-gaussian-a.npz"), "a")
    source = built.find("a").source
    ask = Request("a", source, bins=50, exif="ignore")
    (result,) = build_datasets(place, [ask], InProcess(), Resources(workers=0, threads=2))
    assert result.changed
    assert not place.find("a").imported
    assert place.load("a").identical(built.load("a"))
    assert place.find("a", at=1).imported
    assert all(finding.ok for finding in verify(place))
    with pytest.raises(Conflict):
        reference.import_file(place, str(exported / "histogram-a.npz"), "a")


@pytest.mark.parametrize("kind", KINDS)
def test_verify_and_gc_work_on_imported_datasets(tmp_path: Path, kind: str) -> None:
    place = place_at(tmp_path)
    reference.import_file(place, str(saved_kind(tmp_path / "x", kind)), "a")
    found = list(verify(place))
    assert [finding.check for finding in found] == ["spec", "counts"]
    assert all(finding.ok for finding in found), found
    assert list(garbage(place, keep=1, grace=timedelta(0))) == []
    files = [*Path(tmp_path / "catalogue" / "dna").rglob("*.parquet")]
    data = files[0].read_bytes()
    files[0].write_bytes(data[:-20] + data[-20:][::-1])
    assert not all(finding.ok for finding in verify(place))
    reference.import_file(place, str(tmp_path / "x.npz"), "a")  # repairs the catalogue
    assert all(finding.ok for finding in verify(place))


# The commands.


def test_the_import_and_export_commands(tmp_path: Path) -> None:
    data = histograms()
    data["block_0"][2, data["block_0"][2].argmax()] -= 4
    x, y, place = saved(tmp_path / "x", data), saved(tmp_path / "y", histograms(9)), tmp_path / "c"
    done = vdna("import", x, "x", "-c", place).stdout
    assert "x: 5 images, histogram; committed" in done
    assert "note: its weights, ranges and preprocessing are assumed" in done
    assert "fewer than 5 images x 197 positions" in done
    assert "nothing to do" in vdna("import", x, "x", "-c", place).stdout
    found = vdna_json("import", y, "y", "-c", place)
    assert found["origin"]["assumed"]
    assert found["changed"]
    shown = vdna("show", "x", "-c", place).stdout
    assert "imported   histogram of vdna 0.1.1" in shown
    assert "are assumed" in shown
    assert "fewer than" in shown
    assert vdna_json("show", "x", "-c", place)["origin"]["file"] == str(x)
    assert str(x) in vdna("ls", "-c", place).stdout
    compared = vdna("compare", "-c", place).stdout
    about = "(vdna 0.1.1), its weights, ranges and preprocessing are assumed"
    assert f"note: y was imported from {y} {about}" in compared.replace("\n", " ")
    assert "note: x: block_0: 1 of 3 neurons hold" in compared
    vdna("verify", "-c", place)
    vdna("gc", "-c", place)
    out = vdna("export", "x", tmp_path / "out.npz", "-c", place).stdout
    assert f"x: histogram of 5 images in {tmp_path / 'out.npz'}" in out
    assert original.load_vdna_from_files(tmp_path / "out").num_images == 5
    told = vdna_json("export", "x", tmp_path / "o.npz", "-c", place, "--as", "histogram")
    assert told["kind"] == "histogram"
    failed = vdna("export", "x", tmp_path / "o.npz", "-c", place, "--as", "gaussian", exits=2)
    assert "x has no gaussian; it has histogram" in failed.stderr
    assert "is missing" in vdna("import", broken(x), "z", "-c", place, exits=1).stderr
    ranges = saved_kind(tmp_path / "r", "activation-ranges")
    assert "for `vdna build --ranges`" in vdna("import", ranges, "r", "-c", place).stdout
    helped = vdna("--help").stdout
    assert "import" in helped
    assert "export" in helped


def test_commands_say_who_stated_the_spec(tmp_path: Path) -> None:
    """Every command that shows distances says so: the user, an export of ours, or nobody."""
    x, place = saved(tmp_path / "x", histograms()), tmp_path / "c"
    spec = stated_in(tmp_path, lambda d: None)
    vdna("import", x, "x", "-c", place, "--spec", spec)
    vdna("export", "x", tmp_path / "y.npz", "-c", place)
    vdna("import", tmp_path / "y.npz", "y", "-c", place)
    stated = f"imported from {x} (vdna 0.1.1), under a stated spec"
    own = (
        f"imported from {tmp_path / 'y.npz'} (vdna-pipeline {version('vdna-pipeline')}), under its"
    )
    compared = vdna("compare", "-c", place).stdout.splitlines()
    assert f"note: x was {stated}" in compared
    assert f"note: y was {own} own spec" in compared
    assert f"note: x was {stated}" in vdna("compare", "-c", place, "--json").stderr
    assert f"note: {stated}" in vdna("show", "x", "-c", place).stdout
    assert vdna_json("show", "x", "-c", place)["origin"]["stated"]


def broken(npz: Path) -> Path:
    edit_json(npz, num_images=...)
    return npz


def test_the_modules_of_the_commands_run(tmp_path: Path) -> None:
    npz = saved(tmp_path / "x", histograms())
    done = run(sys.executable, "-m", "jobs.import", npz, "x", "-c", tmp_path / "c")
    assert done.returncode == 0, done.stderr
    done = run(sys.executable, "-m", "jobs.export", "x", tmp_path / "o.npz", "-c", tmp_path / "c")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "o.json").exists()


def test_importing_needs_no_torch_and_no_network(tmp_path: Path) -> None:
    npz = saved(tmp_path / "x", histograms())
    code = (
        "import sys, socket; socket.socket.connect = None\n"
        "from pipeline import Catalogue\nfrom pipeline.interop import import_file\n"
        f"import_file(Catalogue({str(tmp_path / 'c')!r}), {str(npz)!r}, 'x')\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr


def test_the_networks_of_the_reference_are_those_that_are_built() -> None:
    """Compares the table's positions, sizes and normalisations with the real architectures."""
    assert network_shapes.NETWORKS.keys() - registry.BUILT_IN.keys() == {"clip_im_rn50"}
    for name in network_shapes.NETWORKS.keys() & registry.BUILT_IN.keys():
        known, table = registry.architecture(name), network_shapes.NETWORKS[name]
        taps = probe.discover_taps(name, known, None).taps
        assert {tap.name: tap.positions for tap in taps} == dict(table.positions), name
        assert (known.height, known.width) == (table.side, table.side)
        assert (known.mean, known.std) == table.rule
