"""Tests rankings: each image has the distance of its own DNA, and every candidate appears once.

The bytes are the same whatever the shards, order, threads and crashes.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from jobs.app import app
from pipeline import storage
from pipeline.building import Request, build_datasets, make_dna, make_spec, rename_dataset
from pipeline.building.request import PixelOptions
from pipeline.catalogue import (
    Catalogue,
    Commit,
    canonical_json,
    collect,
    find_outliers,
    remove,
)
from pipeline.catalogue.kept_outliers import OUTLIERS
from pipeline.comparing.distance import emd
from pipeline.counting import Extractor, ShardJob, ShardReceipt, Worker
from pipeline.counting import extractor as extractor_module
from pipeline.dna import DNA, Failure, Lens
from pipeline.engine import InProcess
from pipeline.errors import (
    CorruptFile,
    GateError,
    NotFound,
    SourceError,
    SpecMismatch,
    TransientError,
    UsageError,
    VdnaError,
)
from pipeline.events import Event, Retried
from pipeline.explaining import Ranking, RankRequest, measured_dataset, rank, read_ranking
from pipeline.explaining import ranking as rank_module
from pipeline.explaining.image_distances import BACKGROUND_SHARE
from pipeline.explaining.image_emd import LayerEmd
from pipeline.explaining.measured_dataset import MIXED_TOTAL, MeasuredDataset, background_of
from pipeline.explaining.rank_shard import Ranks
from pipeline.explaining.ranking_order import RankingOrder
from pipeline.explaining.reactions import Reaction
from pipeline.mapper import SerialMapper
from pipeline.reporting import HtmlPage, ranking_lines
from pipeline.reporting.html.gallery import Gallery, GalleryImage, Row, render_gallery
from pipeline.reporting.html.ranking_gallery import gallery_of
from pipeline.spec import Resources
from pipeline.storage.temporary import SCRATCH
from pipeline.wording import options_as_flags
from tests.support import tiny_network as tiny
from tests.support.builders import with_row_groups
from tests.support.killer import Killed
from tests.support.tiny_network import BINS, SIDE, Picture

RESOURCES = Resources(workers=0, threads=2)
NAME = "near"
KINDS = ["good"] * 7 + ["empty", "not_an_image", "truncated"]
"""What each image of `source` is."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> tiny.Place:
    return tiny.install(tmp_path_factory.mktemp("tiny"))


def write(folder: Path, kinds: Sequence[str], first: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i, kind in enumerate(kinds):
        (folder / f"{kind}-{i:02d}.png").write_bytes(Picture(kind, first + i).data)
    return folder


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, place: tiny.Place) -> str:
    """Makes a catalogue of one dataset of 9 images, which tests do not change."""
    folder = tmp_path_factory.mktemp("built")
    source = write(folder / "images", ["good"] * 9, first=500)
    engine = InProcess()
    request = Request(NAME, str(source), exemplars=0, **place.options)
    build_datasets(Catalogue(str(folder / "catalogue")), [request], engine, RESOURCES)
    engine.close()
    return str(folder / "catalogue")


@pytest.fixture
def catalogue(built: str, tmp_path: Path) -> Catalogue:
    shutil.copytree(built, tmp_path / "catalogue")
    return Catalogue(str(tmp_path / "catalogue"))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write(tmp_path / "source", KINDS)


@pytest.fixture
def engine() -> Iterator[InProcess]:
    engine = InProcess()
    yield engine
    engine.close()


def ranked(
    catalogue: Catalogue, source: Path, engine: Any, place: tiny.Place, **options: Any
) -> Ranking:
    options = {"max_failures": 3, "resources": RESOURCES, **options}
    others = ("lens", "at", "spec", "resources")
    through = {name: options.pop(name) for name in others if name in options}
    request = RankRequest(str(source), NAME, weights=place.weights, **options)
    return rank(catalogue, request, engine, **through)


def lens_of(catalogue: Catalogue, weights: Sequence[float], name: str = "some") -> Lens:
    spec = catalogue.spec(catalogue.find(NAME).spec)
    return Lens(name, tuple((t.name, t.neurons) for t in spec.taps), np.array(weights, float))


ALONE: dict[bytes, DNA] = {}
"""The DNAs of images, by their bytes."""


def truth_of(
    catalogue: Catalogue, image: Path, place: tiny.Place, lens: Lens | None = None
) -> tuple[float, dict[str, float]]:
    """Computes the distance of one image through a DNA of that image alone."""
    data = image.read_bytes()
    if data not in ALONE:
        ALONE[data] = make_dna(str(image), threads=1, **place.options)
    alone = ALONE[data]
    dataset = catalogue.load(NAME)
    distance = emd(alone, dataset, lens=lens)
    return distance, dict(distance.layers)


# The laws.


@pytest.mark.parametrize("weights", [None, [1, 0, 2, 0.5, 3, 0, 1], [1, -0.25, 2, 0.5, 3, -1, 1]])
def test_each_image_s_distance_is_that_of_its_own_dna(
    catalogue: Catalogue,
    source: Path,
    engine: InProcess,
    place: tiny.Place,
    tmp_path: Path,
    weights: list[float] | None,
) -> None:
    lens = lens_of(catalogue, weights) if weights else None
    out = tmp_path / "out.parquet"
    ranked(catalogue, source, engine, place, lens=lens, layers=["b", "a"], out=str(out))
    rows = pq.read_table(out).to_pylist()
    good = [row for row in rows if row["error"] is None]
    assert len(good) == 7
    for row in good:
        whole, layers = truth_of(catalogue, Path(storage.local_path(row["uri"])), place, lens)
        assert row["emd"] == pytest.approx(whole, rel=1e-9)
        assert row["emd:a"] == pytest.approx(layers["a"], rel=1e-9)
        assert row["emd:b"] == pytest.approx(layers["b"], rel=1e-9)


def test_fiftyone_takes_a_ranking_as_the_guide_shows(
    catalogue: Catalogue,
    source: Path,
    engine: InProcess,
    place: tiny.Place,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The guide's lines run with a module that has FiftyOne's names and keeps what it is given."""
    out = tmp_path / "near.parquet"
    found = ranked(catalogue, source, engine, place, out=str(out))
    samples: list[dict[str, Any]] = []
    views: list[object] = []

    class Dataset:
        def __init__(self, name: str) -> None:
            self.name = name

        def add_samples(self, given: Iterable[dict[str, Any]]) -> None:
            samples.extend(given)

        def sort_by(self, field: str) -> str:
            return f"{self.name} by {field}"

    fiftyone: Any = ModuleType("fiftyone")
    fiftyone.Dataset, fiftyone.Sample = Dataset, dict
    fiftyone.launch_app = lambda dataset, view: views.append(view)
    monkeypatch.setitem(sys.modules, "fiftyone", fiftyone)
    monkeypatch.chdir(tmp_path)
    guide = (Path(__file__).parents[2] / "docs" / "guide.md").read_text()
    (code,) = (part for part in guide.split("```") if "import fiftyone" in part)
    exec(code.removeprefix("python"), {})
    assert views == ["near-rainy by rank"]
    assert len(samples) == found.ranked
    assert all(Path(sample["filepath"]).is_file() for sample in samples)
    assert sorted(sample["rank"] for sample in samples) == [*range(1, found.ranked + 1)]


def test_a_ranking_shows_its_two_ends(
    catalogue: Catalogue, source: Path, engine: InProcess, place: tiny.Place
) -> None:
    found = ranked(catalogue, source, engine, place, layers=["b"], top=2)
    nearest, farthest = found.nearest[0], found.farthest[0]
    assert repr(found) == (
        f"<Ranking of {found.ranked} images by {NAME}, "
        f"nearest {nearest.name} at {nearest.emd:.4g} bins>"
    )
    table = found.to_pandas()
    assert [*table.columns] == ["uri", "member", "rank", "score", "emd", "emd:b"]
    assert table["rank"].tolist() == [1, 2, found.ranked - 1, found.ranked]
    assert table["emd"].tolist()[-1] == farthest.emd
    assert len(ranked(catalogue, source, engine, place, top=99).to_pandas()) == found.ranked
    assert found._repr_html_().count("<tr>") == 5


def test_every_candidate_is_ranked_once_or_listed_with_its_reason(
    catalogue: Catalogue, engine: InProcess, place: tiny.Place, tmp_path: Path
) -> None:
    """There are more than either end shows."""
    source, out = write(tmp_path / "source", ["good"] * 4 + KINDS), tmp_path / "out.parquet"
    (source / "notes.txt").write_text("of another kind")
    (source / "copy.png").write_bytes((source / "good-00.png").read_bytes())  # equally far
    found = ranked(catalogue, source, engine, place, out=str(out))
    table = pq.read_table(out)
    assert table.column_names == ["uri", "member", "rank", "score", "emd", "error"]
    rows = table.to_pylist()
    assert {row["uri"] for row in rows} == {p.as_uri() for p in source.iterdir()} - {
        (source / "notes.txt").as_uri()
    }
    assert len(rows) == 15
    good, bad = rows[:12], rows[12:]
    assert [row["rank"] for row in good] == list(range(1, 13))
    keys = [(row["emd"], row["uri"], row["member"]) for row in good]
    assert keys == sorted(keys)
    assert len({row["emd"] for row in good}) == 11
    assert [row["uri"].rpartition("/")[2] for row in bad] == [
        "empty-11.png",
        "not_an_image-12.png",
        "truncated-13.png",
    ]
    for row in bad:
        assert (row["rank"], row["emd"]) == (None, None)
        assert row["error"].partition(": ")[0] == Path(row["uri"]).name.partition("-")[0]
    assert (found.ranked, found.failed, found.undefined) == (12, 3, 0)
    assert (found.counted_shards, dict(found.ignored)) == (15, {".txt": 1})
    assert [image.entry.uri for image in found.nearest] == [row["uri"] for row in good[:10]]
    assert [image.rank for image in found.farthest] == list(range(12, 2, -1))
    assert [image.entry.uri for image in found.farthest] == [row["uri"] for row in good[:1:-1]]
    assert [of.error for of in found.unranked] == [row["error"] for row in bad]


def test_members_of_archives_are_ranked_as_files_are(
    catalogue: Catalogue, source: Path, engine: InProcess, place: tiny.Place, tmp_path: Path
) -> None:
    packed = tmp_path / "packed"
    packed.mkdir()
    with tarfile.open(packed / "all.tar", "w") as archive:
        for path in sorted(source.iterdir()):
            archive.add(path, f"in/{path.name}")
    a, b = tmp_path / "a.parquet", tmp_path / "b.parquet"
    ranked(catalogue, source, engine, place, out=str(a))
    found = ranked(catalogue, packed, engine, place, out=str(b))
    files, members = pq.read_table(a).to_pylist(), pq.read_table(b).to_pylist()
    of_file = {row["uri"].rpartition("/")[2]: (row["rank"], row["emd"]) for row in files}
    of_member = {row["member"].removeprefix("in/"): (row["rank"], row["emd"]) for row in members}
    assert of_file == of_member
    assert found.nearest[0].name.endswith(f"all.tar::{found.nearest[0].entry.member}")
    assert all(p.image for row in gallery_of(catalogue, found).rows for p in row.pictures)


class OtherOrder(SerialMapper):
    """An engine that takes shards in another order, some twice, each with its own worker."""

    shard_workers = 1

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)

    def run_shards(self, work: Sequence[tuple[ShardJob, int]]) -> Iterator[ShardReceipt]:
        for at in self._random.permutation(len(work)):
            worker = Worker()
            for _ in range(1 + int(self._random.integers(2))):
                receipt = worker.run(*work[at])
            worker.close()
            yield receipt


def test_shards_order_threads_and_retries_change_no_byte(
    built: str, source: Path, engine: InProcess, place: tiny.Place, tmp_path: Path
) -> None:
    """Each run has an empty work folder; the log, the spec and the DNA are the same."""
    ways: list[tuple[Any, dict[str, Any]]] = [
        (engine, {}),
        (engine, {"shard_images": 1}),
        (engine, {"shard_images": 5, "resources": Resources(workers=0, threads=1)}),
        (OtherOrder(1), {"shard_images": 64, "resources": Resources(threads=3, fetch_ahead=2)}),
        (OtherOrder(2), {"shard_images": 2}),
    ]
    found = []
    for number, (by, options) in enumerate(ways):
        root, out = tmp_path / f"c{number}", tmp_path / f"{number}.parquet"
        shutil.copytree(built, root)
        options = {"layers": ["a"], "out": str(out), **options}
        ranked(Catalogue(str(root)), source, by, place, **options)
        found.append(out.read_bytes())
    assert len(set(found)) == 1


@pytest.mark.soak
def test_real_photos_on_the_embedded_network(tmp_path: Path, engine: InProcess) -> None:
    """Its layers have 12,544 to 49 positions, and images share micro-batches."""
    from tests.support.builders import write_photos

    write_photos(tmp_path / "a", 5)
    paths = write_photos(tmp_path / "b", 3, first_seed=90)
    catalogue = Catalogue(str(tmp_path / "catalogue"))
    request = Request(NAME, str(tmp_path / "a"), exemplars=0, shard_images=8)
    build_datasets(catalogue, [request], engine, RESOURCES)
    out = tmp_path / "out.parquet"
    layers = ["bn1", "blocks.6.0"]
    ranking = RankRequest(str(tmp_path / "b"), NAME, layers=layers, out=str(out))
    rank(catalogue, ranking, engine, resources=RESOURCES)
    dataset = catalogue.load(NAME)
    rows = {row["uri"]: row for row in pq.read_table(out).to_pylist()}
    for path in paths:
        alone, row = make_dna(str(path), threads=1), rows[path.as_uri()]
        assert row["emd"] == pytest.approx(emd(alone, dataset), rel=1e-9)
        for layer in ("bn1", "blocks.6.0"):
            assert row[f"emd:{layer}"] == pytest.approx(emd(alone, dataset, layer=layer), rel=1e-9)


def test_layers_of_weight_zero_are_not_computed(
    catalogue: Catalogue,
    source: Path,
    engine: InProcess,
    place: tiny.Place,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made, asked = [], []
    init, distances = LayerEmd.__init__, LayerEmd.distances

    def spy(self: LayerEmd, *args: Any) -> None:
        made.append(args[-1].tolist())
        init(self, *args)

    def counted(self: LayerEmd, x: Any) -> Any:
        asked.append(x.shape[2])
        return distances(self, x)

    monkeypatch.setattr(LayerEmd, "__init__", spy)
    monkeypatch.setattr(LayerEmd, "distances", counted)
    lens = lens_of(catalogue, [0, 0, 0, 0, 0, 1, 2])
    ranked(catalogue, source, engine, place, lens=lens, layers=["b"])
    assert made == [[False, True, True]]
    assert set(asked) == {3}


# Interrupted rankings are resumed.


class CrashAfter(OtherOrder):
    """An engine that ends after a number of shards, as a killed driver does."""

    def __init__(self, after: int) -> None:
        super().__init__(3)
        self._after = after

    def run_shards(self, work: Sequence[tuple[ShardJob, int]]) -> Iterator[ShardReceipt]:
        for done, receipt in enumerate(super().run_shards(work)):
            if done == self._after:
                raise Killed
            yield receipt


def test_a_rerun_computes_only_what_is_missing(
    catalogue: Catalogue, source: Path, engine: InProcess, place: tiny.Place, tmp_path: Path
) -> None:
    clean, out = tmp_path / "clean.parquet", tmp_path / "out.parquet"
    with pytest.raises(Killed):
        ranked(catalogue, source, CrashAfter(5), place, out=str(out))
    assert not out.exists()
    found = ranked(catalogue, source, engine, place, out=str(out))
    assert found.counted_shards == 10 - 6  # the last one was committed, but not yet reported
    again = ranked(catalogue, source, engine, place, out=str(clean))
    assert again.counted_shards == 0
    assert clean.read_bytes() == out.read_bytes()


def test_a_worker_that_dies_before_it_commits_leaves_nothing(
    catalogue: Catalogue,
    source: Path,
    place: tiny.Place,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its shard is counted again, and no image twice."""
    create, out = storage.create, tmp_path / "out.parquet"
    left = iter(range(4))

    def crash_at_the_fifth(uri: str, data: Any) -> bool:
        if "/_ranks/" in uri and "/partials/" in uri and next(left, None) is None:
            raise Killed
        return create(uri, data)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "create", crash_at_the_fifth)
        with pytest.raises(Killed):
            ranked(catalogue, source, OtherOrder(4), place, out=str(out))
    assert not out.exists()
    engine = InProcess()
    assert ranked(catalogue, source, engine, place, out=str(out)).counted_shards == 6
    engine.close()
    assert pq.read_table(out).num_rows == 10


def test_another_lens_layer_or_dna_is_another_ranking(
    catalogue: Catalogue, source: Path, engine: InProcess, place: tiny.Place
) -> None:
    ranked(catalogue, source, engine, place)
    lens = lens_of(catalogue, [1, 1, 1, 1, 1, 1, 2])
    for options in ({"lens": lens}, {"layers": ["a"]}, {"lens": lens, "layers": ["a"]}):
        assert ranked(catalogue, source, engine, place, **options).counted_shards == 10
    same = lens_of(catalogue, [1, 1, 1, 1, 1, 1, 2], "by another name")
    assert ranked(catalogue, source, engine, place, lens=same).counted_shards == 0
    write(source.parent / "more", ["good"] * 4, first=900)
    request = Request(NAME, str(source.parent / "more"), exemplars=0, replace=True, **place.options)
    build_datasets(catalogue, [request], engine, RESOURCES)
    assert ranked(catalogue, source, engine, place).counted_shards == 10
    first = ranked(catalogue, source, engine, place, at=1)
    assert (first.counted_shards, first.commit) == (0, 1)


def test_an_image_that_changed_is_ranked_again(
    catalogue: Catalogue, source: Path, engine: InProcess, place: tiny.Place
) -> None:
    ranked(catalogue, source, engine, place, shard_images=1)
    path = source / "good-03.png"
    path.write_bytes(Picture("good", 77).data)
    os.utime(path, ns=(1, 1))
    found = ranked(catalogue, source, engine, place, shard_images=1)
    assert found.counted_shards == 1
    whole, _ = truth_of(catalogue, path, place)
    (own,) = {i.emd for i in (*found.nearest, *found.farthest) if i.entry.uri == path.as_uri()}
    assert own == pytest.approx(whole, rel=1e-9)


def test_too_many_failures_write_nothing_and_a_higher_limit_needs_no_recounting(
    catalogue: Catalogue, source: Path, engine: InProcess, place: tiny.Place, tmp_path: Path
) -> None:
    out = tmp_path / "out.parquet"
    with pytest.raises(GateError, match=r"3 of 10 images .* the limit is 2 images\."):
        ranked(catalogue, source, engine, place, out=str(out), max_failures=2)
    assert not out.exists()
    assert ranked(catalogue, source, engine, place, out=str(out)).counted_shards == 0
    assert out.exists()


def test_no_image_at_all_is_an_error(
    catalogue: Catalogue, engine: InProcess, place: tiny.Place, tmp_path: Path
) -> None:
    bad = write(tmp_path / "bad", ["empty", "truncated"])
    with pytest.raises(SourceError, match="none of 2 candidates is an image"):
        ranked(catalogue, bad, engine, place, max_failures=9)


@pytest.mark.parametrize("of", [NAME, "nothing"])
def test_a_dataset_s_name_given_as_the_source_is_told_with_the_place_of_its_images(
    catalogue: Catalogue, engine: InProcess, place: tiny.Place, of: str
) -> None:
    with pytest.raises(SourceError, match=f"^{of} does not exist") as caught:
        ranked(catalogue, Path(of), engine, place)
    built_of = catalogue.find(NAME).source
    assert (f"give their place: {built_of}" in str(caught.value)) == (of == NAME)


def test_gc_collects_the_work_after_its_grace(
    catalogue: Catalogue, source: Path, engine: InProcess, place: tiny.Place
) -> None:
    ranked(catalogue, source, engine, place)
    work = storage.join(catalogue.root, "_work", "_ranks")
    assert len(list(storage.walk(work))) == 11
    assert collect(catalogue) == (0, 0)
    count, _ = collect(catalogue, grace=timedelta(seconds=-5))
    assert count == 12, "the work, and the entries of its plan"
    assert ranked(catalogue, source, engine, place).counted_shards == 10


# An image that can be read, but has no defined distance.


def test_an_image_without_a_finite_activation_is_listed_by_the_neuron(
    catalogue: Catalogue,
    source: Path,
    engine: InProcess,
    place: tiny.Place,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Image.new("RGB", (SIDE, SIDE), (255, 255, 255)).save(source / "white.png")
    observe = Extractor.observe

    def overflowing(self: Extractor, pixels: Any, visit: Any) -> None:
        white = torch.from_numpy(pixels.min(axis=(1, 2, 3)) > 0.99)

        def spoil(index: int, x: torch.Tensor) -> None:
            if index == 1:
                x = x.clone()
                x[white, :, 2] = torch.inf
            visit(index, x)

        observe(self, pixels, spoil)

    monkeypatch.setattr(Extractor, "observe", overflowing)
    out = tmp_path / "out.parquet"
    found = ranked(catalogue, source, engine, place, out=str(out))
    assert (found.ranked, found.failed, found.undefined) == (7, 3, 1)
    last = {row["uri"].rpartition("/")[2]: row for row in pq.read_table(out).to_pylist()}
    assert last["white.png"]["error"] == "undefined: no activation of b[2] is finite"
    assert last["white.png"]["emd"] is None
    lens = lens_of(catalogue, [1, 1, 1, 1, 1, 1, 0])
    assert ranked(catalogue, source, engine, place, lens=lens).undefined == 0


# Datasets and specs that cannot be ranked by.


def test_a_ranking_without_the_weights_or_ranges_of_the_spec_is_refused(
    catalogue: Catalogue, source: Path, engine: InProcess, place: tiny.Place, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    torch.manual_seed(2)
    torch.save(tiny.Tiny().state_dict(), other / "tiny.pt")
    where = str(other / "tiny.pt")
    with pytest.raises(SpecMismatch, match=r"have sha256 .*Give those by `weights`"):
        rank(catalogue, RankRequest(str(source), NAME, weights=where), engine)
    ranges = catalogue.ranges_uri(catalogue.spec(catalogue.find(NAME).spec).ranges_digest)
    storage.delete(ranges)
    with pytest.raises(SpecMismatch, match=f"no image can be counted in them|{ranges} is missing"):
        ranked(catalogue, source, engine, place)
    assert not (Path(storage.local_path(catalogue.root)) / "_work" / "_ranks").exists()


@pytest.mark.parametrize("change", ["numerics", "rule", "colour", "size"])
def test_a_spec_of_another_machine_or_version_is_refused_by_its_fields(
    catalogue: Catalogue, source: Path, engine: InProcess, place: tiny.Place, change: str
) -> None:
    """In bf16 the numerics are part of the spec, and a GPU has others than this CPU."""
    version = catalogue.find(NAME)
    spec = catalogue.spec(version.spec)
    if change == "numerics":
        from pipeline.counting import numerics

        gpu = dataclasses.replace(numerics(place.network, "cpu"), device="cuda")
        spec = dataclasses.replace(spec, precision="bf16", bf16_numerics=gpu)
    elif change == "rule":
        spec = dataclasses.replace(spec, counting=2)
    else:
        rule = {"colour": "rgb8-2"} if change == "colour" else {"height": 16}
        spec = dataclasses.replace(spec, preprocess=dataclasses.replace(spec.preprocess, **rule))
    storage.create(catalogue.spec_uri(spec.digest), canonical_json(spec.to_json()))
    moved = dataclasses.replace(version, spec=spec.digest)
    catalogue.put_version("other", moved, None)
    fields = {
        "numerics": r"bf16_numerics.device: 'cuda' against 'cpu'",
        "rule": "counting: 2 against 1",
        "colour": "preprocess.colour: 'rgb8-2' against 'rgb8-1'",
        "size": "preprocess.height: 16 against 8",
    }
    request = RankRequest(str(source), "other", weights=place.weights)
    with pytest.raises(SpecMismatch, match=fields[change]):
        rank(catalogue, request, engine, resources=RESOURCES)


def test_an_imported_dataset_that_lacks_its_ranges_or_spec_is_refused(
    catalogue: Catalogue, source: Path, engine: InProcess, place: tiny.Place
) -> None:
    version = catalogue.find(NAME)
    origin = {"file": "x.npz", "software": "vdna 0.1.1"}
    for more, why in (({"assumed": True}, "its weights, ranges"), ({"stated": True}, "imported")):
        imported = dataclasses.replace(version, origin=origin | more)
        catalogue.put_version(f"of-{why[:3]}", imported, None)
    storage.delete(catalogue.ranges_uri(catalogue.spec(version.spec).ranges_digest))
    with pytest.raises(SpecMismatch, match="ranges and preprocessing are assumed; how images are"):
        rank(catalogue, RankRequest(str(source), "of-its", weights=place.weights), engine)
    with pytest.raises(SpecMismatch, match="since it was imported; no image can be counted"):
        rank(catalogue, RankRequest(str(source), "of-imp", weights=place.weights), engine)


def test_other_numerics_are_noted_and_make_another_ranking(
    catalogue: Catalogue,
    source: Path,
    engine: InProcess,
    place: tiny.Place,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert ranked(catalogue, source, engine, place).notes == ()
    real = rank_module.numerics
    for module in (rank_module, extractor_module):
        monkeypatch.setattr(
            module,
            "numerics",
            lambda *of, **by: dataclasses.replace(real(*of, **by), micro_batch=7),
        )
    found = ranked(catalogue, source, engine, place)
    assert found.notes == (f"numerics differ: {NAME} was counted under micro_batch 8, 7 here",)
    assert found.counted_shards == 10


def test_ranking_by_a_dataset_that_the_lens_was_fitted_on_is_noted(
    catalogue: Catalogue, source: Path, engine: InProcess, place: tiny.Place
) -> None:
    version = catalogue.find(NAME)
    provenance = {"kind": "focus", "members": {NAME: version.dna, "gone": "0" * 64}}
    lens = dataclasses.replace(lens_of(catalogue, [1] * 7), provenance=provenance)
    assert ranked(catalogue, source, engine, place, lens=lens).notes == ()
    (note,) = ranked(catalogue, Path(version.source), engine, place, lens=lens).notes
    assert note.startswith(f"lens some was fitted on {NAME}, of the same source: it does better on")
    outer = ranked(catalogue, Path(version.source).parent, engine, place, lens=lens, include="*-0*")
    assert outer.notes == (note,)
    other = dataclasses.replace(lens, provenance={"members": {NAME: "1" * 64}, "spec": "2" * 64})
    (spec,) = ranked(catalogue, Path(version.source), engine, place, lens=other).notes
    assert spec.startswith(f"lens some was fitted under spec {'2' * 12}, and these are of ")


def test_a_worker_of_other_numerics_than_the_driver_s_is_refused(
    catalogue: Catalogue,
    source: Path,
    engine: InProcess,
    place: tiny.Place,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = extractor_module.numerics
    monkeypatch.setattr(
        extractor_module,
        "numerics",
        lambda *of, **by: dataclasses.replace(real(*of, **by), micro_batch=7),
    )
    both = r"SpecMismatch: .*micro_batch=8.*as the driver has them.*this worker .*micro_batch=7"
    with pytest.raises(VdnaError, match=both):
        ranked(catalogue, source, engine, place)
    assert not parts(catalogue)


def test_an_empty_catalogue_has_nothing_to_rank_by(
    source: Path, engine: InProcess, tmp_path: Path
) -> None:
    with pytest.raises(NotFound, match=r"there is no catalogue at .*empty yet"):
        rank(Catalogue(str(tmp_path / "empty")), RankRequest(str(source), NAME), engine)


def test_unknown_names_layers_and_lenses_without_weight_are_refused(
    catalogue: Catalogue, source: Path, engine: InProcess, place: tiny.Place
) -> None:
    with pytest.raises(NotFound, match="has no dataset 'far'"):
        rank(catalogue, RankRequest(str(source), "far", weights=place.weights), engine)
    with pytest.raises(UsageError, match="no layer 'c'"):
        ranked(catalogue, source, engine, place, layers=["c"])
    lens = lens_of(catalogue, [1, 1, 1, 1, 1, -1, 0])
    with pytest.raises(UsageError, match="gives the neurons of b no weight"):
        ranked(catalogue, source, engine, place, lens=lens, layers=["b"])
    for options in ({"out": "x.csv"}, {"top": -1}, {"limit": 0}, {"max_failures": -1}):
        with pytest.raises(UsageError):
            ranked(catalogue, source, engine, place, **options)
    with pytest.raises(UsageError, match="is inside the source"):
        ranked(catalogue, source.parent, engine, place)


# Wrong files.


def parts(catalogue: Catalogue) -> list[str]:
    walked = storage.walk(storage.join(catalogue.root, "_work", "_ranks"))
    return sorted(item.uri for item in walked if "/partials/" in item.uri)


def images_of(uri: str) -> list[str]:
    return pq.read_table(pa.BufferReader(storage.read(uri)))["uri"].to_pylist()


def rewritten(data: bytes, column: str, value: object) -> bytes:
    """Changes a value in the first row, and leaves the metadata as they were."""
    table = pq.read_table(pa.BufferReader(data))
    rows = table.to_pylist()
    rows[0][column] = value
    return with_row_groups(data, [pa.Table.from_pylist(rows, table.schema)])


@pytest.fixture(scope="module")
def once_ranked(
    built: str, place: tiny.Place, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """Ranks images once. Tests change copies of the catalogue, and leave the images alone."""
    folder = tmp_path_factory.mktemp("ranked")
    source = write(folder / "source", KINDS)
    shutil.copytree(built, folder / "catalogue")
    with InProcess() as engine:
        ranked(Catalogue(str(folder / "catalogue")), source, engine, place, layers=["a"])
    return folder / "catalogue", source


@pytest.mark.parametrize(
    "how",
    [
        "truncated",
        "another's",
        "of another lens",
        "of other layers",
        "nearer",
        "renamed",
        "no ranks",
        "empty",
    ],
)
def test_wrong_ranks_of_a_shard_are_refused_by_name_and_nothing_is_written(
    once_ranked: tuple[Path, Path],
    engine: InProcess,
    place: tiny.Place,
    tmp_path: Path,
    how: str,
) -> None:
    out = tmp_path / "out.parquet"
    made, source = once_ranked
    shutil.copytree(made, tmp_path / "catalogue")
    catalogue = Catalogue(str(tmp_path / "catalogue"))
    one, other = parts(catalogue)[:2]
    data = storage.read(one)
    if how == "of another lens":
        lens = lens_of(catalogue, [1, 1, 1, 1, 1, 1, 2])
        ranked(catalogue, source, engine, place, layers=["a"], lens=lens)
        (other,) = [u for u in parts(catalogue) if u != one and images_of(u) == images_of(one)]
    if how == "of other layers":
        key = json.loads(pq.ParquetFile(pa.BufferReader(data)).metadata.metadata[b"vdna"])["key"]
        table = pq.ParquetFile(pa.BufferReader(data)).read().drop_columns("emd:a")
        wrong = Ranks(key, table).encode()
    else:
        wrong = {
            "truncated": data[:-20],
            "another's": storage.read(other),
            "of another lens": storage.read(other),
            "nearer": rewritten(data, "emd", 0.5),
            "renamed": rewritten(data, "uri", "file:///elsewhere.png"),
            "no ranks": storage.read(catalogue.uri("dna", *_dna(catalogue))),
            "empty": b"",
        }[how]
    storage.replace(one, wrong)
    with pytest.raises(CorruptFile, match=re.escape(one)) as caught:
        ranked(catalogue, source, engine, place, layers=["a"], out=str(out))
    assert "Delete that file, and rerun the same command" in str(caught.value)
    assert not out.exists()
    storage.delete(one)
    assert ranked(catalogue, source, engine, place, layers=["a"], out=str(out)).counted_shards == 1


def _dna(catalogue: Catalogue) -> tuple[str, str, str]:
    version = catalogue.find(NAME)
    return version.spec, NAME, version.dna


def test_ranks_of_a_shard_that_were_removed_meanwhile_are_a_transient_error(
    catalogue: Catalogue,
    source: Path,
    engine: InProcess,
    place: tiny.Place,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ranked(catalogue, source, engine, place)
    storage.delete(parts(catalogue)[3])
    monkeypatch.setattr("pipeline.building.runner._missing", lambda one: (set(), True))
    with pytest.raises(TransientError, match="is gone; rerun the same command"):
        ranked(catalogue, source, engine, place)


@pytest.mark.parametrize("kind", ["dna", "ranges", "spec"])
def test_a_forged_dataset_is_refused_before_anything_is_listed(
    catalogue: Catalogue, source: Path, engine: InProcess, place: tiny.Place, kind: str
) -> None:
    version = catalogue.find(NAME)
    spec = catalogue.spec(version.spec)
    uri = {
        "dna": catalogue.uri("dna", *_dna(catalogue)),
        "ranges": catalogue.ranges_uri(spec.ranges_digest),
        "spec": catalogue.spec_uri(spec.digest),
    }[kind]
    if kind == "spec":
        other = dataclasses.replace(spec, bins=BINS + 1)
        storage.replace(uri, canonical_json(other.to_json()))
    else:
        data = storage.read(uri)
        storage.replace(uri, data[: len(data) // 2])
    with pytest.raises(CorruptFile, match=re.escape(uri)):
        ranked(catalogue, Path("nowhere"), engine, place)


# A dataset's own images.


def test_a_dataset_s_own_images_are_ranked_without_listing_them_and_odd_ones_come_last(
    catalogue: Catalogue,
    tmp_path: Path,
    engine: InProcess,
    place: tiny.Place,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = write(tmp_path / "own images", ["good"] * 6 + ["truncated"], first=500)
    Image.new("RGB", (SIDE, SIDE), (255, 0, 0)).save(source / "odd.png")
    request = Request("own", str(source), exemplars=0, max_failures=1, **place.options)
    build_datasets(catalogue, [request], engine, RESOURCES)
    (source / "new.png").write_bytes(Picture("good", 901).data)  # not of the version
    monkeypatch.setattr(rank_module, "list_source", None)
    to = RankRequest(None, "own", weights=place.weights, max_failures=1, top=1, order="emd")
    found = rank(catalogue, to, engine, resources=RESOURCES)
    assert (found.ranked, found.failed) == (7, 1)
    assert Path(storage.local_path(found.farthest[0].entry.uri)).name == "odd.png"
    named = rank(catalogue, dataclasses.replace(to, to="own@2"), engine, resources=RESOURCES)
    assert (named.ranked, named.counted_shards) == (7, 0)
    (source / "good-02.png").unlink()
    tries: list[Event] = []
    gone = dataclasses.replace(to, order="score")  # of which nothing is done yet
    told = r"good-02.png does not exist.*vdna rank '.*/own images' `to='own'`"
    with pytest.raises(SourceError, match=told):
        rank(catalogue, gone, engine, resources=RESOURCES, progress=tries.append)
    assert not [event for event in tries if isinstance(event, Retried)]
    with pytest.raises(UsageError, match="`limit=3` chooses images of a source, and none is given"):
        RankRequest(None, "own", limit=3)


# The background.

OTHER = "other"


@pytest.fixture(scope="module")
def three_built(
    built: str, place: tiny.Place, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    """Makes a catalogue of three datasets of different sizes, which tests do not change."""
    folder = tmp_path_factory.mktemp("three")
    root, more = folder / "catalogue", folder / "more"
    shutil.copytree(built, root)
    write(more / "other", ["good"] * 3, first=700)
    for day in ("1", "2"):
        write(more / "third" / day, ["good"] * 2, first=800 + 10 * int(day))
    with InProcess() as engine:
        requests = [
            Request(OTHER, str(more / "other"), exemplars=0, **place.options),
            Request("third", str(more / "third"), exemplars=0, by="1", **place.options),
        ]
        build_datasets(Catalogue(str(root)), requests, engine, RESOURCES)
    return str(root), write(folder / "source", KINDS)


def to_mixture(catalogue: Catalogue, image: Path, place: tiny.Place, names: Sequence[str]) -> float:
    """Computes the distance of one image to the mean of datasets' distributions."""
    data = image.read_bytes()
    alone = ALONE.setdefault(data, make_dna(str(image), threads=1, **place.options))
    mixed = np.mean([catalogue.load(name).distributions() for name in names], axis=0)
    apart = np.cumsum(alone.distributions() - mixed, axis=1)
    return float(np.abs(apart).sum(axis=1).mean())


@pytest.mark.parametrize(
    ("options", "background"),
    [
        ({}, (NAME, OTHER, "third")),
        ({"against": [OTHER]}, (OTHER,)),
        ({"against": ["third/2", OTHER]}, (OTHER, "third/2")),
        ({"order": "emd"}, ()),
    ],
)
def test_the_score_is_the_distance_less_three_quarters_of_that_to_the_background(
    three_built: tuple[str, Path],
    engine: InProcess,
    place: tiny.Place,
    tmp_path: Path,
    options: dict[str, Any],
    background: tuple[str, ...],
) -> None:
    shutil.copytree(three_built[0], tmp_path / "catalogue")
    catalogue, source = Catalogue(str(tmp_path / "catalogue")), three_built[1]
    out = tmp_path / "out.parquet"
    found = ranked(catalogue, source, engine, place, out=str(out), top=3, **options)
    assert found.background == {name: catalogue.find(name).dna for name in background}
    rows = [row for row in pq.read_table(out).to_pylist() if row["error"] is None]
    assert len(rows) == 7
    for row in rows:
        path = Path(storage.local_path(row["uri"]))
        assert row["emd"] == pytest.approx(truth_of(catalogue, path, place)[0], rel=1e-9)
        share = 0.75 * to_mixture(catalogue, path, place, background) if background else 0
        assert row["score"] == pytest.approx(row["emd"] - share, rel=1e-5, abs=1e-5)
    assert [row["score"] for row in rows] == sorted(row["score"] for row in rows)
    assert [row["rank"] for row in rows] == [*range(1, 8)]
    ends = [*found.nearest, *found.farthest[::-1]]
    assert [image.score for image in ends] == [row["score"] for row in rows[:3] + rows[-3:]]
    lines = "\n".join(ranking_lines(found))
    assert ("in the order of the score: the distance to near" in lines) == bool(background)
    assert all(name in lines for name in background)
    assert read_ranking(catalogue, str(out)).background == found.background
    first = gallery_of(catalogue, found).rows[0].pictures[0].lines
    best = found.nearest[0]
    ordered_by = f"score {best.score:.2f}" if background else f"{best.emd:.2f} bins"
    assert first[0] == f"#1: {ordered_by}"
    assert f"{best.emd:.2f} bins" in first[-1]


def test_another_background_is_another_ranking(
    three_built: tuple[str, Path], engine: InProcess, place: tiny.Place, tmp_path: Path
) -> None:
    shutil.copytree(three_built[0], tmp_path / "catalogue")
    catalogue, source = Catalogue(str(tmp_path / "catalogue")), three_built[1]
    plain = {"order": "emd", "limit": 4, "max_failures": 4}
    score = {"limit": 4, "max_failures": 4}
    assert ranked(catalogue, source, engine, place, **plain).counted_shards == 4
    assert ranked(catalogue, source, engine, place, **score).counted_shards == 4
    named = {"against": ["third", OTHER, NAME], **score}
    assert ranked(catalogue, source, engine, place, **named).counted_shards == 0
    assert ranked(catalogue, source, engine, place, against=[OTHER], **score).counted_shards == 4
    write(tmp_path / "more", ["good"] * 2, first=900)
    request = Request("fourth", str(tmp_path / "more"), exemplars=0, **place.options)
    build_datasets(catalogue, [request], engine, RESOURCES)
    assert ranked(catalogue, source, engine, place, **plain).counted_shards == 0
    assert ranked(catalogue, source, engine, place, **score).counted_shards == 4


def test_a_large_catalogue_gives_a_background_of_some_datasets_with_the_one_that_is_asked_for(
    three_built: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    catalogue = Catalogue(three_built[0])
    monkeypatch.setattr(measured_dataset, "MOST_BACKGROUND", 2)
    for name in (NAME, OTHER, f"{NAME}@1"):
        dataset = MeasuredDataset.find(catalogue, name)
        names = [other.name for other in background_of(catalogue, dataset, [])]
        assert name in names
        assert len(names) == 2
        assert not {"third/1", "third/2"} & {*names}


def test_a_background_that_cannot_be_is_refused_before_anything_is_listed(
    three_built: tuple[str, Path], engine: InProcess, place: tiny.Place, tmp_path: Path
) -> None:
    shutil.copytree(three_built[0], tmp_path / "catalogue")
    catalogue, nowhere = Catalogue(str(tmp_path / "catalogue")), Path("nowhere")
    with pytest.raises(UsageError, match="the background is near itself"):
        ranked(catalogue, nowhere, engine, place, against=[NAME])
    with pytest.raises(NotFound, match="has no dataset 'nothing'"):
        ranked(catalogue, nowhere, engine, place, against=["nothing"])
    with pytest.raises(UsageError, match="no part in the order by the distance alone"):
        ranked(catalogue, nowhere, engine, place, against=[OTHER], order="emd")
    other = catalogue.find(OTHER)
    uri = catalogue.uri("dna", other.spec, OTHER, other.dna)
    storage.replace(uri, storage.read(uri)[:500])
    with pytest.raises(CorruptFile, match=re.escape(uri)):
        ranked(catalogue, nowhere, engine, place)


# The outliers that are kept.

OWN = "own"


@pytest.fixture(scope="module")
def own_built(built: str, place: tiny.Place, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Adds a dataset of six images, an odd one and one that cannot be read; tests copy the folder.

    The images lie beside the catalogue, and a copy of the catalogue still has their names.
    """
    folder = tmp_path_factory.mktemp("own")
    shutil.copytree(built, folder / "catalogue")
    source = write(folder / "images", ["good"] * 6 + ["truncated"], first=500)
    Image.new("RGB", (SIDE, SIDE), (255, 0, 0)).save(source / "odd.png")
    request = Request(OWN, str(source), exemplars=0, max_failures=1, **place.options)
    with InProcess() as engine:
        build_datasets(Catalogue(str(folder / "catalogue")), [request], engine, RESOURCES)
    return folder


@pytest.fixture
def own(own_built: Path, tmp_path: Path) -> Catalogue:
    shutil.copytree(own_built / "catalogue", tmp_path / "own")
    return Catalogue(str(tmp_path / "own"))


def own_ranked(own: Catalogue, place: tiny.Place, lens: Lens | None = None, **more: Any) -> Ranking:
    options = {"weights": place.weights, "max_failures": 1, **more}
    with InProcess() as engine:
        request = RankRequest(options.pop("source", None), OWN, **options)
        return rank(own, request, engine, lens=lens, resources=RESOURCES)


def test_the_outliers_of_a_dataset_are_kept_as_its_plain_ranking_has_them(
    own: Catalogue, place: tiny.Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version, out = own.find(OWN), tmp_path / "out.parquet"
    assert find_outliers(own, version) is None
    found = own_ranked(own, place, top=1, out=str(out))
    kept = find_outliers(own, version)
    assert kept is not None
    rows = [row for row in pq.read_table(out).to_pylist() if row["error"] is None]
    columns = ("uri", "member", "rank", "score", "emd")
    assert [asdict(image) for image in kept.images] == [
        {name: row[name] for name in columns} for row in reversed(rows)
    ]
    assert kept.median == sorted(row["emd"] for row in rows)[3]
    assert (kept.ranked, kept.failed, kept.undefined) == (7, 1, 0)
    assert kept.background == found.background == {name: own.find(name).dna for name in (NAME, OWN)}
    assert find_outliers(own, own.find(NAME)) is None
    monkeypatch.setattr(rank_module, "MOST_OUTLIERS", 3)
    assert own_ranked(own, place).counted_shards == 0
    assert find_outliers(own, version) == kept.first(3), "the later ranking counts"


def test_too_many_failures_of_own_images_name_the_command_that_takes_more(
    own: Catalogue, own_built: Path, place: tiny.Place
) -> None:
    """`vdna show --outliers` ranks them, too, and has no such limit."""
    with options_as_flags(), pytest.raises(GateError) as of_own:
        own_ranked(own, place, max_failures=0)
    assert "or rank them with a higher --max-failures, which" in str(of_own.value)
    with options_as_flags(), pytest.raises(GateError, match="or rerun with a higher --max-fail"):
        own_ranked(own, place, max_failures=0, source=str(own_built / "images"))
    assert find_outliers(own, own.find(OWN)) is None


@pytest.mark.parametrize(
    "options", [{"order": "emd"}, {"against": [NAME]}, {"lens": "some"}, {"source": "images"}]
)
def test_no_ranking_of_another_kind_is_kept_as_outliers(
    own: Catalogue, own_built: Path, place: tiny.Place, options: dict[str, Any]
) -> None:
    if "lens" in options:
        options = {"lens": lens_of(own, [1, 0, 2, 0.5, 3, 0, 1])}
    if "source" in options:
        options = {"source": str(own_built / "images")}
    assert own_ranked(own, place, **options).ranked == 7
    assert find_outliers(own, own.find(OWN)) is None


def test_what_a_killed_ranking_leaves_on_disk_is_removed_by_a_later_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its folder is one of those that are looked for; see tests/storage/test_scratch_folders.py."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    manifest, recipe = (SimpleNamespace(keys=lambda *_: []), SimpleNamespace())
    recipe.spec, recipe.products = SimpleNamespace(digest=""), ()
    with RankingOrder(cast(Any, manifest), cast(Any, SimpleNamespace(recipe=recipe)), ()):
        (folder,) = tmp_path.iterdir()
        assert folder.name.startswith(SCRATCH)
    assert list(tmp_path.iterdir()) == []


def test_kept_outliers_belong_to_one_version(
    own: Catalogue, own_built: Path, place: tiny.Place, tmp_path: Path
) -> None:
    own_ranked(own, place)
    old, kept = own.find(OWN), find_outliers(own, own.find(OWN))
    rename_dataset(own, OWN, "renamed")
    assert find_outliers(own, own.find("renamed")) == kept
    rename_dataset(own, "renamed", OWN)
    # A source of its own: the next version is not of the images that other tests read.
    source = shutil.copytree(own_built / "images", tmp_path / "images")
    request = Request(OWN, str(source), exemplars=0, max_failures=1, replace=True, **place.options)
    with InProcess() as engine:
        build_datasets(own, [request], engine, RESOURCES)
    new = own.find(OWN)
    assert new.dna != old.dna
    assert find_outliers(own, new) is None
    own_ranked(own, place)
    of_both = [find_outliers(own, version) for version in (old, new)]
    assert of_both[0] == kept
    assert of_both[1] is not None
    collect(own, grace=timedelta(seconds=-5))
    assert [find_outliers(own, version) for version in (old, new)] == of_both
    collect(own, keep=1, grace=timedelta(seconds=-5))
    assert [find_outliers(own, version) for version in (old, new)] == [None, of_both[1]]


def test_outliers_that_were_found_while_images_were_erased_are_not_kept(
    own: Catalogue, place: tiny.Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, head = [], Catalogue.head

    def erased_meanwhile(of: Catalogue) -> Commit:
        begun.append(of)
        return dataclasses.replace(head(of), erasure=int(len(begun) > 1))

    monkeypatch.setattr(Catalogue, "head", erased_meanwhile)
    own_ranked(own, place)
    assert len(begun) > 1
    assert find_outliers(own, own.find(OWN)) is None


def test_the_format_of_outliers_is_raised_with_the_rule_of_their_score() -> None:
    """What was kept by another rule is refused then. If this fails, raise the format."""
    assert (OUTLIERS.format, BACKGROUND_SHARE, MIXED_TOTAL) == (1, 0.75, 2**24)


def test_show_looks_for_outliers_once_and_lists_them_from_then_on(
    own: Catalogue, place: tiny.Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def shown(*words: str, exits: int = 0) -> str:
        of_a_job_that_runs = {"VDNA_METRICS_PORT": "of no use to what only reads"}
        words = ("show", OWN, *words, "-c", own.root)
        done = CliRunner(env=of_a_job_that_runs).invoke(app, words)
        assert done.exit_code == exits, done.output
        return done.output if exits else done.stdout

    hint = "  outliers   not looked for: `vdna show own{} --outliers 10` does it, and reads all"
    assert hint.format("") in shown()
    spec = own.find(OWN).spec
    assert hint.format(f" --spec {spec} --at 2") in shown("--at", "2", "--spec", spec)
    assert json.loads(shown("--json"))["outliers"] is None
    ranking = ("--weights", place.weights, "--workers", "0")
    text = shown("--outliers", "1", *ranking)
    kept = find_outliers(own, own.find(OWN))
    assert kept is not None
    first = kept.images[0]
    assert [line for line in text.splitlines() if line.startswith("  outliers ")] == [
        f"  outliers   the farthest of 7 images; half of all are at most {kept.median:.2f} bins "
        "from own"
    ]
    assert f"    score {first.score:.2f}, {first.emd:.2f} bins: {first}\n" in text
    assert (
        "    in the order of the score: the distance to own, less three quarters of the distance "
        "to near and own, taken together\n"
    ) in text
    monkeypatch.setattr("pipeline.api.rank", None)  # from now on they are only read
    assert shown("--outliers", "1") == text
    assert [line.count(" bins: ") for line in shown().splitlines()].count(1) == 5
    assert "  outliers " not in shown("--outliers", "0")
    assert json.loads(shown("--json", "--outliers", "7"))["outliers"] == kept.to_json()
    assert len(json.loads(shown("--json"))["outliers"]["images"]) == 5
    assert "--outliers" in shown("--outliers", "101", exits=2)
    for few in ((), ("--outliers", "0")):
        assert "--weights needs --outliers" in shown("--weights", place.weights, *few, exits=2)
    rename_dataset(own, OWN, "renamed")
    renamed = CliRunner().invoke(app, ["show", "renamed", "-c", own.root]).stdout
    assert "the distance to renamed, less three quarters of the distance to near and renamed" in (
        renamed
    )


def test_show_says_which_datasets_of_the_background_are_others_by_now(
    own: Catalogue, place: tiny.Place, tmp_path: Path
) -> None:
    def shown(*words: str) -> str:
        return CliRunner().invoke(app, ["show", OWN, *words, "-c", own.root]).stdout

    own_ranked(own, place)
    number = own.head().number
    order = "the distance to {} and own, taken together"
    assert f"{order.format('near')}\n" in shown()
    rename_dataset(own, NAME, "far")
    assert f"{order.format('far')}\n" in shown()
    rename_dataset(own, "far", NAME)
    source = write(tmp_path / "others", ["good"] * 4, first=700)
    request = Request(NAME, str(source), exemplars=0, replace=True, **place.options)
    with InProcess() as engine:
        build_datasets(own, [request], engine, RESOURCES)
    against = "The images were ranked against"
    told = f"{order.format('near')}. {against} another version of near; `vdna rank --to own` ranks"
    assert told in shown()
    assert against not in shown("--at", str(number))
    remove(own, [NAME])
    assert f"{against} near, which is gone; `vdna rank --to own` ranks them anew\n" in shown()
    own_ranked(own, place)
    assert against not in shown()
    with InProcess() as engine:
        build_datasets(own, [request], engine, RESOURCES)
    own_ranked(own, place)
    assert f"{against} another version of near; `vdna rank --to own --at {number}`" in (
        shown("--at", str(number))
    )


def test_show_says_that_kept_outliers_are_damaged_and_ranks_again_if_asked(
    own: Catalogue, own_built: Path, place: tiny.Place
) -> None:
    version = own.find(OWN)
    uri = own.outliers_uri(version.spec, version.dna)
    own_ranked(own, place)
    sound, words = storage.read(uri), ["show", OWN, "-c", own.root]
    kept = find_outliers(own, version)
    assert kept is not None
    for data in (sound[:-9], dataclasses.replace(kept, dna="0" * 32).encode()):
        storage.replace(uri, data)
        done = CliRunner().invoke(app, words)
        assert (done.exit_code, "note: its outliers cannot be read: " in done.stdout) == (0, True)
        assert "not looked for" not in done.stdout
        again = [*words, "--outliers", "2", "--weights", place.weights, "--workers", "0"]
        assert CliRunner().invoke(app, again).exit_code == 0
        assert storage.read(uri) == sound
    storage.delete(uri)
    shutil.rmtree(Path(storage.local_path(own.root)) / "_work" / "_ranks")
    path = own_built / "images" / "good-02.png"
    gone = path.rename(path.with_suffix(".gone"))
    try:
        done = CliRunner().invoke(app, again)
    finally:
        gone.rename(path)
    assert done.exit_code == 1
    assert "good-02.png does not exist" in done.output
    assert find_outliers(own, version) is None


# The page.


def test_the_page_shows_both_ends_and_notes_missing_images(
    catalogue: Catalogue, source: Path, engine: InProcess, place: tiny.Place, tmp_path: Path
) -> None:
    odd = source / "<script>alert(1)&\n.png"
    odd.write_bytes(Picture("good", 40).data)
    found = ranked(catalogue, source, engine, place, layers=["b"], top=4)
    gone = Path(storage.local_path(found.nearest[1].entry.uri))
    gone.unlink()
    out = tmp_path / "page.html"
    HtmlPage(render_gallery(gallery_of(catalogue, found))).save(str(out))
    page = out.read_text()
    assert page.count("<figure") == 8
    assert page.count('src="data:image/webp;base64,') == 7
    assert page.count('<div class="missing">cannot be read again: ') == 1
    assert "<script" not in page
    assert page.count('tabindex="0"') == 8
    assert f"#1: {found.nearest[0].emd:.2f} bins" in page
    assert f"b: {found.nearest[0].layers[0]:.3g}" in page
    assert "truncated-09.png: truncated: " in page
    assert found.version.dna in page
    assert len(page) < 200_000
    everything = gallery_of(catalogue, ranked(catalogue, source, engine, place, limit=4))
    names = [picture.name for row in everything.rows for picture in row.pictures]
    assert len(names) == len(set(names))


def test_a_gallery_escapes_what_it_shows_and_allows_nothing_but_its_style() -> None:
    evil = "</style><script>alert('x')</script>\"onload=1 {style} https://me:secret@host/x"
    picture = GalleryImage(evil, (evil, evil), missing=evil)
    page = render_gallery(
        Gallery(evil, [Row(evil, [picture], evil)], evil, [evil], [(evil, evil)])
    ).decode()
    assert "<script" not in page
    assert page.count("</style>") == 1
    assert "secret" not in page
    assert '"onload' not in page
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None
    allowed = dict(rule.split(" ", 1) for rule in policy[1].split("; "))
    assert allowed.pop("style-src").startswith("'sha256-")
    assert allowed.pop("img-src") == "data:"
    assert allowed == dict.fromkeys(("default-src", "base-uri", "form-action"), "'none'")


def test_control_characters_in_names_are_escaped() -> None:
    assert storage.spelled("file:///a%1b%5B2J%0Ab.png", "m\x1b") == "/a\\x1b[2J\\nb.png::m\\x1b"
    failure = Failure("s3://b/x\x1b.tar", "m\x1b", "truncated", "at \x1b[2J")
    assert str(failure) == "s3://b/x\\x1b.tar::m\\x1b: truncated: at \\x1b[2J"
    reaction = Reaction("s3://b/x\x1b.tar", "m\x1b", 1.0)
    assert str(reaction) == "s3://b/x\\x1b.tar::m\\x1b"


def test_images_are_ranked_by_all_that_the_dataset_says_of_pixels(tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "resize": "fast",
        "crop": "center",
        "exif": "ignore",
        "alpha": "white",
        "jpeg": "scaled",
    }
    assert {field.name for field in dataclasses.fields(PixelOptions)} == {*options, "decoder"}
    network = tiny.install(tmp_path).network
    spec = make_spec(Request("x", "x", **options), network, "00", "cpu")
    nothing: Any = None
    settings = MeasuredDataset("x", nothing, nothing, spec).settings
    assert make_spec(Request("y", "y", **settings), network, "00", "cpu") == spec
