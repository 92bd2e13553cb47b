"""Tests layer Gaussians: one pass, exact merging through shards, folds and files.

Their Fréchet distance equals that of other packages.
"""

from __future__ import annotations

import shutil
import tracemalloc
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline import fd, make_dna, nfd, storage
from pipeline.building import Request, build_datasets, committer
from pipeline.catalogue import Catalogue, garbage, verify
from pipeline.catalogue.garbage_collection import GRACE
from pipeline.comparing import Matrix, compare, frechet
from pipeline.comparing.comparison_job import Job
from pipeline.comparing.gaussians import root_covariance
from pipeline.comparing.layer_cache import clear_cache
from pipeline.comparing.tile_sums import compute
from pipeline.comparing.tiles import Tile
from pipeline.counting import (
    Counter,
    Extractor,
    compose,
    digest_of_dna,
    load_partial,
    partial_uri,
    plan_folds,
)
from pipeline.dna import DNA, DnaFile, Moments, Partial, encode_dna
from pipeline.engine import InProcess
from pipeline.errors import (
    ConservationError,
    CorruptFile,
    NotFound,
    SpecMismatch,
    StorageError,
    UsageError,
)
from pipeline.networks import describe
from pipeline.networks.ranges_file import embedded_ranges
from pipeline.sources import Entry, Shard, list_source, plan
from pipeline.spec import IMAGE_HASHES, LAYER_GAUSSIAN, PRODUCTS, Resources, Tap
from tests.support import tiny_network as tiny
from tests.support.builders import NUMERICS, decode_dna, random_dna, tiny_spec, write_photos

TAPS = (Tap("stem", 3, 4), Tap("head", 5, 1))
SPEC, RANGES = tiny_spec(taps=TAPS)
ENGINE = InProcess()
RESOURCES = Resources(workers=0, threads=2)
Floats = NDArray[np.float64]


def of_samples(means: Floats) -> DNA:
    """Makes the DNA of images with these spatial means (images, 8), counted in the first bin."""
    moments = Moments([tap.neurons for tap in TAPS], layerwise=True)
    for start in range(0, len(means), 3):
        moments.add(means[start : start + 3])
    empty = DNA.empty(SPEC, RANGES, layer_gaussian=True)
    counts = np.zeros_like(empty.counts)
    counts[:, 0] = len(means) * empty.positions
    return replace(
        empty,
        images=len(means),
        counts=counts,
        mean=moments.mean,
        m2=moments.m2,
        scatter=moments.scatter,
        numerics=((NUMERICS, len(means)),) if len(means) else (),
    )


def samples(seed: int, images: int, shift: float = 0.0) -> Floats:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((images, 8)) @ rng.standard_normal((8, 8)) + shift


dnas = st.builds(
    lambda seed, n, shift: of_samples(samples(seed, n, shift)),
    st.integers(0, 2**32 - 1),
    st.integers(0, 12),
    st.sampled_from([0.0, 3.0, -1e4]),
)


# Merging.


@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=6),
    st.integers(0, 2**32 - 1),
    st.floats(0, 1e6),
)
def test_parts_of_any_size_have_the_covariance_of_the_whole(
    sizes: list[int], seed: int, shift: float
) -> None:
    means = samples(seed, sum(sizes) + 2, shift)
    cuts = np.cumsum(sizes)
    total = reduce(DNA.__add__, [of_samples(part) for part in np.split(means, cuts)])
    for layer, columns in (("stem", slice(0, 3)), ("head", slice(3, 8))):
        found = total.scatter_of(layer) / (len(means) - 1)
        expected = np.cov(means[:, columns].T)
        # What centring first costs: a mean has an error of about 1e-16 of the shift.
        tolerance = 1e-12 * np.abs(expected).max() + 1e-14 * max(1.0, shift) ** 1.5
        assert np.allclose(found, expected, rtol=1e-9, atol=tolerance)


def test_a_sum_adds_the_outer_product_of_the_difference_of_means() -> None:
    """With an elementwise square instead, neurons that move together would seem uncorrelated."""
    a, b = of_samples(np.zeros((2, 8))), of_samples(np.ones((2, 8)))
    assert np.array_equal((a + b).scatter_of("head"), np.ones((5, 5)))


@given(dnas, dnas, dnas)
def test_addition_is_associative_and_commutative_up_to_rounding(a: DNA, b: DNA, c: DNA) -> None:
    scale = 1 + max(float(np.abs(d.mean).max()) for d in (a, b, c)) ** 2 * 36
    left, right, turned = (a + b) + c, a + (b + c), c + (b + a)
    for other in (right, turned):
        assert left.scatter is not None
        assert other.scatter is not None
        assert np.allclose(left.scatter, other.scatter, rtol=1e-9, atol=1e-12 * scale)


@given(dnas, st.lists(dnas, min_size=1, max_size=4))
def test_empty_is_neutral_and_sums_are_sound(a: DNA, parts: list[DNA]) -> None:
    empty = DNA.empty(SPEC, RANGES, layer_gaussian=True)
    assert (a + empty).identical(a)
    assert (empty + a).identical(a)
    sum(parts, empty).check()


def test_deviations_do_not_cancel_far_from_zero() -> None:
    means = 1e9 + np.arange(4.0)[:, None] * np.ones(8)
    dna = of_samples(means[:2]) + of_samples(means[2:])
    assert np.array_equal(dna.scatter_of("stem"), np.full((3, 3), 5.0))


@pytest.mark.filterwarnings("error")
def test_an_overflowing_network_gives_nan_and_no_warning() -> None:
    means = samples(1, 6)
    means[2, 4] = np.inf
    dna = of_samples(means[:3]) + of_samples(means[3:])
    dna.check()
    assert np.isnan(dna.scatter_of("head")[1, 1])
    assert np.isfinite(dna.scatter_of("stem")).all()
    assert np.isnan(fd(dna, dna, layer="head"))
    assert fd(dna, dna, layer="stem") == pytest.approx(0, abs=1e-12)


def test_dnas_with_and_without_scatter_are_not_added() -> None:
    with pytest.raises(SpecMismatch, match="layer Gaussians"):
        of_samples(samples(0, 3)) + DNA.empty(SPEC, RANGES)


def test_a_scatter_that_is_not_of_these_images_is_refused() -> None:
    dna = of_samples(samples(0, 9))
    assert dna.scatter is not None
    scatter = dna.scatter.copy()
    scatter[6] += 1.0  # the first neuron of `head` with itself
    with pytest.raises(ConservationError, match=r"head\[0\] has the sum of squares"):
        replace(dna, scatter=scatter).check()


# Files.


@settings(max_examples=20)
@given(dnas)
def test_a_partial_s_file_gives_back_every_bit(dna: DNA) -> None:
    assert decode_dna(encode_dna(dna), "x")[0].identical(dna)
    (head, _) = decode_dna(encode_dna(dna), "x", layers=["head"])
    assert head.identical(dna.select(["head"]))


def test_selecting_a_layer_keeps_its_scatter() -> None:
    dna = of_samples(samples(5, 7))
    assert np.array_equal(dna.select(["head"]).scatter_of("head"), dna.scatter_of("head"))
    both = dna.select(["head", "stem"])
    assert np.array_equal(both.scatter_of("stem"), dna.scatter_of("stem"))
    with pytest.raises(CorruptFile, match="was not loaded"):
        dna.select(["head"]).scatter_of("stem")


# Distances.

THEIR_SQUARE_ROOT = pytest.mark.filterwarnings("ignore:The `disp` argument:DeprecationWarning")


def numbers(dna: DNA, layer: str) -> tuple[Floats, Floats]:
    return dna.mean[dna.slice_of(layer)], dna.scatter_of(layer) / (dna.images - 1)


@THEIR_SQUARE_ROOT
@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1), st.integers(20, 40), st.integers(20, 40), st.floats(0, 20))
def test_fd_equals_that_of_three_other_packages(seed: int, n: int, m: int, shift: float) -> None:
    from cleanfid.fid import frechet_distance
    from torch_fidelity.metric_fid import fid_statistics_to_metric
    from vdna.utils.stats import frechet_distance_multidim

    a, b = of_samples(samples(seed, n)), of_samples(samples(seed + 1, m, shift))
    for layer in ("stem", "head"):
        (mean_a, cov_a), (mean_b, cov_b) = numbers(a, layer), numbers(b, layer)
        expected = float(
            frechet_distance_multidim(*map(torch.from_numpy, (mean_a, cov_a, mean_b, cov_b)))
        )
        fidelity = fid_statistics_to_metric(
            {"mu": mean_a, "sigma": cov_a}, {"mu": mean_b, "sigma": cov_b}, verbose=False
        )["frechet_inception_distance"]
        clean = float(frechet_distance(mean_a, cov_a, mean_b, cov_b))
        ours = fd(a, b, layer=layer)
        assert ours == pytest.approx(expected, rel=1e-9)
        assert ours == pytest.approx(fidelity, rel=1e-9)
        assert ours == pytest.approx(clean, rel=1e-9)


@THEIR_SQUARE_ROOT
@pytest.mark.parametrize("images", [40, 700])
def test_fd_of_wide_layers_with_few_images_and_with_many(images: int) -> None:
    """Their covariances are singular: our result is exact, the others lose half of their digits."""
    from cleanfid.fid import frechet_distance

    rng = np.random.default_rng(images)
    mix = rng.standard_normal((256, 256)) / 16
    x, y = (
        np.abs(rng.standard_normal((images, 256)) @ mix) * s + t for s, t in ((1, 0), (1.2, 0.1))
    )
    mean_x, mean_y = x.mean(0), y.mean(0)
    roots = [
        np.linalg.svd((v - v.mean(0)) / np.sqrt(images - 1), full_matrices=False) for v in (x, y)
    ]
    root_x, root_y = (vectors.T * values for _, values, vectors in roots)
    truth = frechet(mean_x, root_x, mean_y, root_y)
    taps = (Tap("wide", 256, 1),)
    spec, ranges = tiny_spec(taps=taps)
    dnas = []
    for v in (x, y):
        moments = Moments([256], layerwise=True)
        for start in range(0, images, 8):
            moments.add(v[start : start + 8])
        dnas.append(
            replace(
                DNA.empty(spec, ranges),
                images=images,
                mean=moments.mean,
                m2=moments.m2,
                scatter=moments.scatter,
            )
        )
    ours = fd(*dnas)
    assert ours == pytest.approx(truth, rel=1e-11)
    covariances = [np.cov(v.T) for v in (x, y)]
    clean = frechet_distance(mean_x, covariances[0], mean_y, covariances[1])
    assert ours == pytest.approx(float(clean), rel=1e-6)
    assert root_covariance(dnas[0], "wide").shape == (256, min(256, images - 1))


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1), st.integers(2, 30), st.integers(2, 30))
def test_fd_is_symmetric_not_negative_and_zero_on_itself(seed: int, n: int, m: int) -> None:
    a, b = of_samples(samples(seed, n)), of_samples(samples(seed + 7, m, 2.0))
    assert fd(a, b) == pytest.approx(fd(b, a), rel=1e-9)
    assert fd(a, b) > 0
    assert fd(a, a) == pytest.approx(0, abs=1e-9 * float(np.abs(a.m2).max()))


def test_fd_of_one_layer_of_all_layers_and_of_neurons() -> None:
    a, b = of_samples(samples(0, 12)), of_samples(samples(1, 9, 1.0))
    by_layer = fd(a, b).layers
    assert by_layer == {layer: fd(a, b, layer=layer) for layer in ("stem", "head")}
    assert fd(a, b) == pytest.approx(np.mean(list(by_layer.values())))
    assert fd(a, b, layer="head").neurons[2] == nfd(a, b, layer="head").neurons[2]
    assert np.array_equal(fd(a, b, per_neuron=True), nfd(a, b, per_neuron=True))
    without = replace(a, scatter=None)
    with pytest.raises(UsageError, match="second DNA has no layer Gaussians: build it, and load"):
        fd(a, without)
    with pytest.raises(UsageError, match="at least 2 images"):
        fd(a, of_samples(samples(2, 1)))


# Through a build.


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    write_photos(folder, 11)
    return folder


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """Returns the fields of a request that name the small network."""
    return tiny.install(tmp_path_factory.mktemp("tiny")).options


@pytest.fixture(scope="module")
def built(
    folder: Path, small: dict[str, object], tmp_path_factory: pytest.TempPathFactory
) -> Catalogue:
    place = Catalogue(str(tmp_path_factory.mktemp("built")))
    other = tmp_path_factory.mktemp("others")
    write_photos(other, 12, first_seed=100)
    few = tmp_path_factory.mktemp("few")
    write_photos(few, 3, first_seed=200)
    build_datasets(
        place,
        [
            request_of(folder, "a", **small),
            request_of(other, "b", **small),
            request_of(few, "without", **small, layer_gaussian=False),
        ],
        ENGINE,
        RESOURCES,
    )
    return place


@pytest.fixture(scope="module")
def real(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    """Builds a dataset with the embedded network, whose layers are wide."""
    place = Catalogue(str(tmp_path_factory.mktemp("real")))
    build_datasets(place, [request_of(folder)], ENGINE, RESOURCES)
    return place


def request_of(folder: Path, name: str = "a", **options: Any) -> Request:
    defaults = {"bins": 50, "shard_images": 2, "layer_gaussian": True}
    return Request(name, str(folder), **(defaults | options))


@pytest.mark.soak
def test_a_build_has_the_covariance_of_the_images_features(real: Catalogue, folder: Path) -> None:
    dna = real.load("a", layer_gaussian=True)
    network = describe("efficientnet_lite0")
    counter = Counter(Extractor(network), dna.spec, embedded_ranges(network.name)[0])
    entries = list_source(str(folder)).entries
    features = np.stack([counter.count(Shard(0, 0, (e,)), "k").dna.mean for e in entries])
    counter.close()
    for layer in ("bn1", "blocks.3.1", "bn2"):
        expected = np.cov(features[:, dna.slice_of(layer)].T)
        found = dna.scatter_of(layer) / (dna.images - 1)
        assert np.allclose(found, expected, rtol=1e-7, atol=1e-9 * np.abs(expected).max())
    direct = make_dna(folder, bins=50, layer_gaussian=True, threads=1)
    assert fd(dna, direct) == pytest.approx(0, abs=1e-8)
    assert np.array_equal(dna.counts, direct.counts)


@pytest.mark.soak
def test_layer_gaussians_are_a_separate_file_and_do_not_change_the_dna(
    real: Catalogue, folder: Path, tmp_path: Path
) -> None:
    plain = Catalogue(str(tmp_path / "plain"))
    request = request_of(folder, layer_gaussian=False)
    build_datasets(plain, [request], ENGINE, Resources(workers=0, threads=1))
    a, b = real.load("a"), plain.load("a")
    assert a.scatter is None
    assert a.identical(b)
    version = real.find("a")
    assert version.products == (*PRODUCTS, LAYER_GAUSSIAN, "exemplars-8", IMAGE_HASHES)
    uri = real.uri("layer_gaussians", version.spec, "a", version.dna)
    table = pq.read_table(storage_path(uri))
    assert table.column_names == ["layer", "neuron", "mean", "scatter"]
    assert [len(row) for row in table["scatter"][:3].to_pylist()] == [32, 31, 30]
    assert set(version.footers) == {"dna", "folds", "layer_gaussians"}
    part = real.load("a", layers=["bn2"], layer_gaussian=True)
    assert part.identical(real.load("a", layer_gaussian=True).select(["bn2"]))
    with pytest.raises(NotFound, match="build it with `layer_gaussian=True`"):
        plain.load("a", layer_gaussian=True)


def storage_path(uri: str) -> str:
    return uri.removeprefix("file://")


@pytest.mark.soak
def test_any_number_of_threads_gives_the_same_bits(
    real: Catalogue, folder: Path, tmp_path: Path
) -> None:
    other = Catalogue(str(tmp_path / "other"))
    build_datasets(other, [request_of(folder)], ENGINE, Resources(workers=0, threads=1))
    assert other.find("a").sha256 == real.find("a").sha256


def test_verify_recomputes_the_scatter_and_finds_a_change(built: Catalogue, tmp_path: Path) -> None:
    assert [f for f in verify(built, ["a"]) if not f.ok] == []
    copy = tmp_path / "copy"
    shutil.copytree(storage_path(built.root), copy)
    place = Catalogue(str(copy))
    version = place.find("a")
    uri = place.uri("layer_gaussians", version.spec, "a", version.dna)
    data = bytearray(storage.read(uri))
    data[len(data) // 2] ^= 1
    storage.replace(uri, bytes(data))
    (bad,) = [f for f in verify(place, ["a"]) if f.check == "counts"]
    assert not bad.ok
    assert "layer_gaussians" in bad.detail


def test_another_dataset_s_gaussians_are_refused(built: Catalogue) -> None:
    a, b = built.find("a"), built.find("b")
    data = built.read_checked("layer_gaussians", "b", b)
    dna = built.load("a")
    with pytest.raises(CorruptFile, match="other means than the DNA"):
        DnaFile(data, "layer_gaussians", "another").read_gaussians(dna)
    assert a.dna != b.dna


def test_a_build_with_layer_gaussians_does_not_reuse_partials_without_them(
    folder: Path, small: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Catalogue(str(tmp_path / "c"))
    plain = request_of(folder, **small, layer_gaussian=False)
    (first,) = build_datasets(place, [plain], ENGINE, RESOURCES)
    (second,) = build_datasets(place, [request_of(folder, **small)], ENGINE, RESOURCES)
    assert second.changed
    assert second.counted_shards == first.counted_shards
    assert second.version.dna != first.version.dna
    partials = storage.join(place.work_uri("a", second.version.spec), "partials")
    held = [load_partial(item.uri).dna.scatter is not None for item in storage.walk(partials)]
    assert sorted(held) == [False] * first.counted_shards + [True] * first.counted_shards

    def never(*_: object, **__: object) -> None:
        raise AssertionError("nothing is to be counted")

    monkeypatch.setattr(Counter, "make", never)
    # A dataset that has them keeps them, whether or not the next build asks.
    (third,) = build_datasets(place, [plain], ENGINE, RESOURCES)
    assert not third.changed
    assert third.version == second.version


def test_the_matrix_has_fd_if_both_datasets_have_layer_gaussians(built: Catalogue) -> None:
    matrix = compare(built, ["a", "b", "without"], fd=True)
    a, b = (built.load(name, layer_gaussian=True) for name in ("a", "b"))
    assert matrix.of("b", "fd")[0, 1] == pytest.approx(fd(a, b, layer="b"), rel=1e-9)
    assert matrix.of(column="fd")[1, 0] == pytest.approx(fd(a, b), rel=1e-9)
    assert np.isnan(matrix.of(column="fd")[2]).all()
    again = Matrix.decode(matrix.encode(), "x")
    assert np.array_equal(again.fd, matrix.fd, equal_nan=True)
    assert compare(built, ["a", "b", "without"], fd=True).fd[-1, 0, 1] == matrix.fd[-1, 0, 1]
    assert np.isnan(compare(built, ["a", "b"]).fd).all()


def test_a_tile_that_is_no_square_has_the_same_fd(built: Catalogue) -> None:
    """Its rows are other DNAs than its columns, and some are on both sides."""
    names = ("a", "b", "without")
    matrix = compare(built, names, fd=True)
    spec = built.load("a").spec
    job = Job(built.root, spec, spec.layers, True, fd=True, error_bars=False)

    def fd_of(rows: Sequence[int], columns: Sequence[int], job: Job = job) -> np.ndarray:
        a, b = (
            tuple((names[at], built.find(names[at])) for at in side) for side in (rows, columns)
        )
        return compute(Tile(job, a, b))["fd"]

    expected = matrix.stacked("fd")
    clear_cache()
    assert np.isnan(fd_of((0, 1, 2), (0, 1, 2), replace(job, fd=False))[:, 0, 1]).all()
    square = fd_of((0, 1, 2), (0, 1, 2))
    assert np.array_equal(square, expected, equal_nan=True)
    assert (np.diagonal(square[:, :2, :2], axis1=1, axis2=2) == 0).all()
    for rows, columns in (((1, 0), (0, 1, 2)), ((1,), (0, 1)), ((0, 1), (1,))):
        found = fd_of(rows, columns)
        of_both = expected[:, rows][:, :, columns]
        assert np.allclose(found, of_both, rtol=1e-9, atol=1e-9, equal_nan=True)


def test_gaussians_of_two_images_have_distances_and_those_of_one_have_none(
    small: dict[str, object], tmp_path: Path
) -> None:
    place, names = Catalogue(str(tmp_path / "c")), ("four", "two", "one")
    for name, count in zip(names, (4, 2, 1), strict=True):
        write_photos(tmp_path / name, count, first_seed=10 * count)
    wanted = [request_of(tmp_path / name, name, **small) for name in names]
    build_datasets(place, wanted, ENGINE, RESOURCES)
    four, two, _ = (place.load(name, layer_gaussian=True) for name in names)
    clear_cache()
    found = compare(place, names, fd=True)
    for column, distance in (("fd", fd(four, two)), ("nfd", nfd(four, two))):
        matrix = found.stacked(column)[-1]
        assert matrix[0, 1] == pytest.approx(float(distance), rel=1e-9)
        assert np.isnan(matrix[2, :2]).all()


def test_the_digest_of_a_dna_depends_on_its_scatter(built: Catalogue) -> None:
    dna = built.load("a", layer_gaussian=True)
    version = built.find("a")
    assert digest_of_dna(dna, version.manifest, version.products) == version.dna
    assert dna.scatter is not None
    scatter = dna.scatter.copy()
    scatter[1] = np.nextafter(scatter[1], np.inf)  # off the diagonal: no sum of squares tells
    changed = replace(dna, scatter=scatter)
    changed.check()
    assert digest_of_dna(changed, version.manifest, version.products) != version.dna


def test_verify_finds_a_partial_with_another_scatter(built: Catalogue, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(storage_path(built.root), copy)
    place = Catalogue(str(copy))
    partials = storage.join(place.work_uri("a", place.find("a").spec), "partials")
    uri = next(iter(storage.walk(partials))).uri
    partial = load_partial(uri)
    assert partial.dna.scatter is not None
    scatter = partial.dna.scatter.copy()
    scatter[1] += 1.0
    storage.replace(uri, replace(partial, dna=replace(partial.dna, scatter=scatter)).encode())
    (bad,) = [finding for finding in verify(place, ["a"]) if not finding.ok]
    assert bad.check == "partials"


def test_partials_without_scatter_are_not_composed_as_if_they_had_it(
    built: Catalogue, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(storage_path(built.root), copy)
    place = Catalogue(str(copy))
    version = place.find("a")
    work = place.work_uri("a", version.spec)
    for item in list(storage.walk(storage.join(work, "partials"))):
        partial = load_partial(item.uri)
        storage.replace(item.uri, replace(partial, dna=replace(partial.dna, scatter=None)).encode())
    manifest = place.manifest("a", version)
    _, folds = plan_folds(manifest, work, version.spec, version.products)
    with pytest.raises(CorruptFile, match=r"the partials' products are not .*layer_gaussian"):
        compose(folds, manifest, version.products, "a")


def test_gc_keeps_only_what_the_version_needs(built: Catalogue, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(storage_path(built.root), copy)
    place = Catalogue(str(copy))
    later = datetime.now(UTC) + 2 * GRACE
    assert [item.uri for item in garbage(place, now=later) if "/_work/" not in item.uri] == []
    version = place.find("a")
    stray = place.uri("layer_gaussians", version.spec, "a", "0" * 32)
    storage.create(stray, b"of a version that was never committed")
    found = [item.uri for item in garbage(place, now=later)]
    assert stray in found
    assert not any("/partials/" in uri for uri in found)


def test_gc_keeps_the_partials_of_a_build_that_has_begun(
    folder: Path, small: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Catalogue(str(tmp_path / "c"))

    def dies(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(committer, "compose", dies)
    with pytest.raises(KeyboardInterrupt):
        build_datasets(place, [request_of(folder, **small)], ENGINE, RESOURCES)
    found = [item.uri for item in garbage(place, now=datetime.now(UTC) + 2 * GRACE)]
    assert not any("/partials/" in uri for uri in found)


def test_a_commit_holds_one_layer_in_memory_and_the_rest_on_disk(tmp_path: Path) -> None:
    """Sixteen folds of four layers of 512 neurons have 67 MB of scatter matrices."""
    taps = tuple(Tap(f"layer.{i}", 512, 1) for i in range(4))
    spec, ranges = tiny_spec(taps=taps)
    manifest = plan([Entry(f"s3://b/{i:03d}.jpg", "", 1, f"{i}") for i in range(16)])
    assert len(manifest.shards) == 16
    work = storage.canonical(str(tmp_path))
    rng = np.random.default_rng(0)
    total = 0
    products = (*PRODUCTS, LAYER_GAUSSIAN)
    for shard in manifest.shards:
        key = shard.key(spec.digest, products)
        dna = random_dna(spec, ranges, 1, shard.index)
        scatter = rng.standard_normal(DNA.empty(spec, ranges, layer_gaussian=True).scatter.shape)
        steps = np.cumsum([0, *range(512, 1, -1)])
        diagonal = np.concatenate([steps + i * 512 * 513 // 2 for i in range(4)])
        scatter[diagonal] = np.abs(scatter[diagonal])
        dna = replace(dna, scatter=scatter, m2=scatter[diagonal].copy(), mean=np.zeros(2048))
        data = Partial(dna, (key,), ()).encode()
        total += len(data)
        storage.create(partial_uri(work, key), data)
    _, folds = plan_folds(manifest, work, spec.digest, products)
    tracemalloc.start()
    composed = compose(folds, manifest, products, "wide")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total > 60e6
    assert peak < total * 0.6
    assert set(composed.files) == {"dna", "folds", "layer_gaussians"}


def test_a_full_disk_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert bytes(storage.on_disk(b"some bytes")) == b"some bytes"

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    with pytest.raises(StorageError, match=r"10 bytes do not go to .*No space left.* TMPDIR"):
        storage.on_disk(b"some bytes")
