"""Tests exemplars, the images that each neuron reacts to most, in any shards and order."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import reduce
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from jobs.app import app
from pipeline import storage
from pipeline.building import Request, Result, build_datasets
from pipeline.building.counted_way import products_of
from pipeline.catalogue import Catalogue, verify
from pipeline.counting import load_partial, partial_uri
from pipeline.counting.top_images import TopImages
from pipeline.dna import Exemplars, ExemplarSettings, Partial, add_kept
from pipeline.dna.exemplars import EXEMPLAR_TABLE_SCHEMA
from pipeline.engine import InProcess
from pipeline.errors import CorruptFile, NotFound, SpecMismatch, UsageError
from pipeline.explaining import explain
from pipeline.sources import Manifest
from pipeline.spec import Tap
from tests.catalogue.test_verification import Copy
from tests.support import tiny_network as tiny
from tests.support.builders import random_dna, tiny_spec, with_row_groups

SPEC, RANGES = tiny_spec()
KEEP = ExemplarSettings(3)
VALUES = (-1.5, -0.0, 0.0, 0.25, 0.25000001, 7.0, np.nan, np.inf, -np.inf)


def truth(means: np.ndarray, names: list[tuple[str, str]], wanted: ExemplarSettings) -> list[dict]:
    """Returns the rows of the table by sorting everything."""
    rows = []
    at = 0
    for tap in SPEC.taps:
        for neuron in range(tap.neurons):
            if not wanted.layers or tap.name in wanted.layers:
                seen = means[:, at].astype(np.float32)
                order = sorted(
                    np.flatnonzero(np.isfinite(seen)), key=lambda i: (-seen[i], names[i])
                )
                rows += [
                    {"layer": tap.name, "neuron": neuron, "rank": rank}
                    | {"reaction": float(seen[i]), "uri": names[i][0], "member": names[i][1]}
                    for rank, i in enumerate(order[: wanted.number], 1)
                ]
            at += 1
    return rows


def kept(
    means: np.ndarray, names: list[tuple[str, str]], wanted: ExemplarSettings, batches: list[int]
) -> Exemplars:
    order = np.empty(len(names), np.int64)
    order[sorted(range(len(names)), key=names.__getitem__)] = np.arange(len(names))
    reactions = TopImages(wanted, SPEC, order)
    start = 0
    for size in [*batches, len(means)]:
        some = np.arange(start, min(start + size, len(means)))
        reactions.add(means[some], some)
        start += size
    return reactions.named(names)


@settings(max_examples=60)
@given(data=st.data())
def test_exemplars_do_not_depend_on_shards_or_order(data: st.DataObject) -> None:
    count = data.draw(st.integers(0, 24))
    means = np.array(
        data.draw(st.lists(st.sampled_from(VALUES), min_size=5 * count, max_size=5 * count))
    ).reshape(count, 5)
    names = [(f"s3://b/{i % 3}é", f"m{i // 3:02d}" if i % 2 else "") for i in range(count)]
    names = [(uri, f"{member}-{i}") for i, (uri, member) in enumerate(names)]
    wanted = data.draw(
        st.sampled_from(
            [KEEP, ExemplarSettings(1), ExemplarSettings(40), ExemplarSettings(2, ("head",))]
        )
    )
    whole = kept(means, names, wanted, data.draw(st.lists(st.integers(1, 5), max_size=4)))
    assert whole.table.to_pylist() == truth(means, names, wanted)
    assert whole.table.schema.equals(EXEMPLAR_TABLE_SCHEMA)
    order = data.draw(st.permutations(range(count)))
    cuts = sorted(data.draw(st.lists(st.integers(0, count), max_size=4)))
    parts = [
        kept(means[some], [names[i] for i in some], wanted, [])
        for a, b in zip([0, *cuts], [*cuts, count], strict=True)
        for some in [order[a:b]]
    ]
    assert reduce(Exemplars.__add__, parts) == whole
    assert reduce(Exemplars.__add__, parts[::-1]) == whole
    assert whole + Exemplars.empty(wanted, SPEC) == whole
    dna = random_dna(SPEC, RANGES, count, 1)
    partial = Partial(dna, ("key",), (), whole)
    again = Partial.decode(partial.encode(), "partial")
    assert again.identical(partial)
    assert again.exemplars == whole
    assert Exemplars.decode(whole.encode("photos", "ab"), "file", SPEC) == whole


def test_exemplars_with_other_settings_are_not_added() -> None:
    a, b = Exemplars.empty(KEEP, SPEC), Exemplars.empty(ExemplarSettings(4), SPEC)
    with pytest.raises(SpecMismatch, match="exemplars-3 cannot be added to exemplars-4"):
        a + b
    with pytest.raises(SpecMismatch, match="exemplars cannot be added to one without"):
        add_kept("exemplars", a, None)
    with pytest.raises(SpecMismatch, match="bins"):
        a + Exemplars.empty(KEEP, replace(SPEC, bins=9))


def test_products_state_the_exemplar_settings() -> None:
    for wanted in (ExemplarSettings(8), ExemplarSettings(2, ("stem", "head"))):
        assert ExemplarSettings.from_products(("histogram", wanted.product)) == wanted
    assert ExemplarSettings.from_products(("histogram",)) is None
    with pytest.raises(CorruptFile, match="'exemplars-x' has no number"):
        ExemplarSettings.from_products(("exemplars-x",))
    assert ExemplarSettings.from_options(4, "st*, head", SPEC.taps) == ExemplarSettings(
        4, ("stem", "head")
    )
    assert ExemplarSettings.from_options(0, None, SPEC.taps) is None
    with pytest.raises(UsageError, match="exemplars is 101; it must be from 0 to 100"):
        ExemplarSettings.from_options(101, None, SPEC.taps)
    with pytest.raises(UsageError, match="'tail' matches no layer; there are stem, head"):
        ExemplarSettings.from_options(4, "tail", SPEC.taps)


# In a build.


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> tiny.Place:
    return tiny.install(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def place(tmp_path: Path) -> Catalogue:
    return Catalogue(str(tmp_path / "dnas"))


def fill(folder: Path, count: int, first: int = 0) -> Path:
    folder.mkdir(exist_ok=True)
    for seed in range(first, first + count):
        (folder / f"{seed:03d}.png").write_bytes(tiny.Picture("good", seed).data)
    (folder / "bad.png").write_bytes(b"")
    return folder


def build(place: Catalogue, network: tiny.Place, source: Path, **options: object) -> Result:
    options = {"name": "photos", "max_failures": 2, "shard_images": 5, **network.options, **options}
    request = Request(source=str(source), **options)  # type: ignore[arg-type]
    return build_datasets(place, [request], InProcess())[0]


def test_a_build_names_the_images_of_the_largest_means(
    place: Catalogue, network: tiny.Place, tmp_path: Path
) -> None:
    source = fill(tmp_path / "images", 23)
    version = build(place, network, source).version
    held = place.exemplars("photos", version)
    pictures = {f"{seed:03d}.png": tiny.Picture("good", seed) for seed in range(23)}
    oracle = tiny.Oracle(network)
    means = {name: oracle.truth({name: picture}).means[0] for name, picture in pictures.items()}
    for neuron in range(sum(tiny.WIDTHS)):
        rows = held.rows.filter(pa.compute.equal(held.rows["neuron"], neuron))
        first = [uri.rpartition("/")[2] for uri in rows["uri"].to_pylist()]
        order = sorted(means, key=lambda name: (-np.float32(means[name][neuron]), name))
        assert first == order[:8]
    assert all(finding.ok for finding in verify(place, ["photos"]))
    one = Catalogue(str(tmp_path / "one-shard"))
    again = build(one, network, source, shard_images=100).version
    assert one.exemplars("photos", again) == held
    assert again.spec == version.spec


def test_a_dataset_without_exemplars_gets_them_only_if_asked(
    place: Catalogue, network: tiny.Place, tmp_path: Path
) -> None:
    source = fill(tmp_path / "images", 6)
    first = build(place, network, source, exemplars=0)
    assert "exemplars" not in first.version.sha256
    with pytest.raises(NotFound, match="photos has no exemplars: build it with `exemplars=8`"):
        place.exemplars("photos", first.version)
    fill(source, 1, 50)
    grown = build(place, network, source)
    assert "exemplars" not in grown.version.sha256
    assert grown.counted_shards < 3
    asked = build(place, network, source, exemplars=2, exemplar_taps="b")
    assert asked.changed
    held = place.exemplars("photos", asked.version)
    assert held.settings == ExemplarSettings(2, ("b",))
    assert set(held.table["layer"].to_pylist()) == {"b"}
    assert build(place, network, source).changed is False
    assert place.load("photos").identical(place.load_version("photos", grown.version))
    assert build(place, network, source, exemplars=0).changed


def test_the_number_of_exemplars_and_their_layers_stay_each_by_itself(
    place: Catalogue, network: tiny.Place, tmp_path: Path
) -> None:
    source = fill(tmp_path / "images", 6)
    build(place, network, source, exemplars=3, exemplar_taps="b")
    assert not build(place, network, source, exemplars=3).changed
    assert not build(place, network, source, exemplar_taps="b").changed
    for options, settings_now in (
        ({"exemplars": 4}, ExemplarSettings(4, ("b",))),
        ({"exemplar_taps": "*"}, ExemplarSettings(4, ("a", "b"))),
        ({"exemplars": 0}, None),
        ({"exemplar_taps": "a"}, ExemplarSettings(8, ("a",))),
    ):
        products = build(place, network, source, **options).version.products
        assert ExemplarSettings.from_products(products) == settings_now


def test_layers_whose_names_have_glob_characters_keep_their_exemplars() -> None:
    names = ("a[0]", "a0", "b*", "bc", "d?", "de")
    network: Any = SimpleNamespace(taps=tuple(Tap(name, 1, 1) for name in names))
    had: Any = SimpleNamespace(imported=False, products=("exemplars-3:a[0],b*,d?",))
    request = Request("x", "images", exemplars=4)
    assert "exemplars-4:a[0],b*,d?" in products_of(request, network, had)


def test_an_explanation_names_the_images_of_both_sides(
    place: Catalogue, network: tiny.Place, tmp_path: Path
) -> None:
    for name, first, kept in (("a", 0, None), ("b", 40, 3), ("c", 60, 0), ("d", 80, None)):
        taps = "b" if name == "d" else None
        source = fill(tmp_path / name, 9, first)
        build(place, network, source, name=name, exemplars=kept, exemplar_taps=taps)
    found = explain(place, "a", "b", top=4)
    assert len(found.reactions) == 4
    rows = found.neurons.slice(0, 4).to_pylist()
    for row, sides in zip(rows, found.reactions, strict=True):
        for name, number, images in zip("ab", (8, 3), sides, strict=True):
            held = place.exemplars(name, place.find(name)).of_neuron(row["layer"], row["neuron"])
            assert [(image.uri, image.reaction) for image in images or ()] == [
                (of["uri"], of["reaction"]) for of in held
            ]
            assert len(held) == number
    (first, _) = found.reactions[0]
    assert first is not None
    said = CliRunner().invoke(app, ["explain", "a", "b", "-c", place.root]).stdout
    assert f"\n{rows[0]['layer']}[{rows[0]['neuron']}]: " in said
    strongest = f"among its strongest, mean activation {first[0].reaction:.3g}"
    assert f"  of a: {storage.spelled(first[0].uri)} ({strongest})" in said
    assert said.count("  of b: ") == 2 * 5
    json_of = CliRunner().invoke(app, ["explain", "a", "c", "-c", place.root, "--json"]).stdout
    sides = json.loads(json_of)["neurons"][0]["exemplars"]
    assert len(sides["a"]) == 8
    assert sides["c" if "c" in sides else "b"] is None
    lacking = CliRunner().invoke(app, ["explain", "a", "c", "-c", place.root]).stdout
    assert "No images are named for c, which keeps none: build it with --exemplars 8." in lacking
    partly = explain(place, "a", "d", top=99)
    layers = partly.neurons["layer"].to_pylist()
    named = [sides[1] is not None for sides in partly.reactions]
    assert named == [layer == "b" for layer in layers]
    words = ["explain", "a", "d", "-c", place.root, "--layer", "a"]
    said = CliRunner().invoke(app, words).stdout
    assert "No images are named for d, which keeps those of other layers (its build had --" in said


def test_wrong_exemplars_are_refused_by_name(
    place: Catalogue, network: tiny.Place, tmp_path: Path
) -> None:
    version = build(place, network, fill(tmp_path / "images", 12)).version
    uri = place.uri("exemplars", version.spec, "photos", version.dna)
    held = place.exemplars("photos", version)
    sound = storage.read(uri)

    def found(data: bytes, *, vouched: bool = True) -> str:
        if vouched:
            Copy(place).put("exemplars", data)
        else:
            storage.replace(uri, data)
        bad = [finding for finding in verify(place, ["photos"]) if not finding.ok]
        assert bad[0].check == "exemplars"
        return bad[0].detail

    def with_rows(rows: pa.Table) -> bytes:
        return Exemplars(held.settings, held.spec, rows).encode("photos", version.dna)

    def with_uris(uris: pa.Array) -> bytes:
        at = held.rows.column_names.index("uri")
        return with_rows(held.rows.set_column(at, "uri", uris))

    assert f"{uri} has sha256" in found(sound[:-9], vouched=False)
    assert "neuron a[0] has 7 exemplars for 12 images" in found(with_rows(held.rows.slice(1)))
    names = held.rows["uri"].to_pylist()
    other = pa.array(["file:///elsewhere.png", *names[1:]])
    assert "that are not counted images" in found(with_uris(other))
    failed = pa.array([f"{(tmp_path / 'images').as_uri()}/bad.png", *names[1:]])
    assert "that are not counted images" in found(with_uris(failed))
    swapped = pa.concat_tables([held.rows.slice(1, 1), held.rows.slice(0, 1), held.rows.slice(2)])
    assert f"{uri}: its rows are not in their order" in found(with_rows(swapped))
    assert f"{uri} holds exemplars-4; exemplars-8" in found(
        replace(held, settings=ExemplarSettings(4), rows=held.rows.slice(0, 0)).encode(
            "photos", version.dna
        )
    )


def test_exemplars_that_no_partial_names_are_found(
    place: Catalogue, network: tiny.Place, tmp_path: Path
) -> None:
    version = build(place, network, fill(tmp_path / "images", 6)).version
    held = place.exemplars("photos", version)
    at = held.rows.column_names.index("reaction")
    rows = held.rows.set_column(at, "reaction", pa.array(held.rows["reaction"].to_numpy() + 1))
    forged = Exemplars(held.settings, held.spec, rows).encode("photos", version.dna)
    Copy(place).put("exemplars", forged)
    (bad,) = [finding for finding in verify(place, ["photos"]) if not finding.ok]
    assert bad.check == "partials"
    assert bad.detail.endswith("do not sum to the DNA")


def test_exemplars_of_the_first_layer_alone_are_checked(
    place: Catalogue, network: tiny.Place, tmp_path: Path
) -> None:
    build(place, network, fill(tmp_path / "images", 6), exemplar_taps="a")
    findings = {finding.check: finding for finding in verify(place, ["photos"])}
    assert all(finding.ok for finding in findings.values())
    copy = Copy(place)
    failures = copy.read("failures")
    storage.replace(copy.uri("failures"), b"torn")
    assert [f.check for f in verify(place, ["photos"]) if not f.ok] == ["failures"]
    storage.replace(copy.uri("failures"), failures)
    storage.replace(copy.uri("manifests"), b"torn")
    detail = {f.check: f.detail for f in verify(place, ["photos"]) if not f.ok}["exemplars"]
    assert detail == "not checked, since the manifest itself could not be read"


def test_a_partial_with_wrong_exemplars_is_refused(
    place: Catalogue, network: tiny.Place, tmp_path: Path
) -> None:
    version = build(place, network, fill(tmp_path / "images", 12)).version
    manifest: Manifest = place.manifest("photos", version)
    work = place.work_uri("photos", version.spec)
    keys = manifest.keys(version.spec, version.products)
    partials = [load_partial(partial_uri(work, key)) for key in keys]
    partial = next(of for of in partials if of.dna.images)  # one shard may hold the bad image only
    assert partial.exemplars is not None
    rows = partial.exemplars.rows
    at = rows.column_names.index("reaction")
    wrong_rows = rows.set_column(at, "reaction", pa.array(rows["reaction"].to_numpy() + 1))
    wrong = replace(
        partial, exemplars=Exemplars(partial.exemplars.settings, partial.dna.spec, wrong_rows)
    )
    file = pq.ParquetFile(pa.BufferReader(wrong.encode()))
    others = [file.read_row_group(index) for index in range(file.num_row_groups)]
    with pytest.raises(CorruptFile, match=r"its rows end at|has sha256"):
        Partial.decode(with_row_groups(partial.encode(), others), "partial")
