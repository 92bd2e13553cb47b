"""Tests the page's file, which is complete, small and without secrets, and what is gathered."""

from __future__ import annotations

import base64
import io
import json
import re
import uuid
import zlib
from collections.abc import Sequence
from copy import copy
from dataclasses import fields, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from jobs.app import app
from pipeline import comparing as matrix_module
from pipeline.building import Request, build_datasets
from pipeline.catalogue import Catalogue
from pipeline.comparing import Matrix, compare, plane_map
from pipeline.comparing.distance import emd
from pipeline.dna import Floats, Lens
from pipeline.engine import InProcess
from pipeline.errors import BadImage, SourceError, UsageError, VdnaError
from pipeline.explaining import Explanation, PairNeuron, explain, is_far, pair_neurons, stages_of
from pipeline.images import fingerprint, is_one_photograph, load
from pipeline.reporting import gather_matrix_page, require_html
from pipeline.reporting.html import dataset_panels as panels
from pipeline.reporting.html import thumbnails
from pipeline.reporting.html.dataset_panels import spec_facts
from pipeline.reporting.html.frame import save_page
from pipeline.reporting.html.matrix_page import PAGE_COLUMNS, RATES, render_matrix_page
from pipeline.reporting.html.packing import BITS, BITS_OF_A_TEST, EXACT_DATASETS, pack
from pipeline.reporting.html.page_data import Page, Panel, Seen
from pipeline.reporting.html.thumbnails import SIDE, THUMBNAIL, thumbnail
from pipeline.sources import plan
from pipeline.spec import Preprocess, Resources
from tests.golden.handmade import commit_dataset, entries, hand_made
from tests.reporting.test_report import matrix_of, with_estimates, with_nan, with_single
from tests.support import tiny_network as tiny
from tests.support.builders import photo, write_photos

HOSTILE = "</script><script>alert(1)</script><!-- & \u2028 '\""


def page_of(*matrices: Matrix, **more: Any) -> Page:
    return Page(matrices, [Panel("7 images")] * len(matrices[0].names), **more)


def data_of(html: bytes) -> Any:
    found = re.findall(
        r'<script id="data" type="application/json">(.*?)</script>', html.decode(), re.DOTALL
    )
    assert len(found) == 1
    return json.loads(found[0])


def unpacked(text: str, size: int) -> Floats:
    """Does in numpy what the page's `unpack` does."""
    raw = zlib.decompress(base64.b64decode(text))
    sorted_by_weight = np.frombuffer(raw, np.uint8).reshape(4, -1)
    values = np.ascontiguousarray(sorted_by_weight.T).view("<f4").ravel()
    assert len(values) == size * (size - 1) // 2
    return values.astype(float)


# The file.


def test_the_page_refers_to_nothing_outside_itself() -> None:
    text = render_matrix_page(page_of(matrix_of("a", "b", "c"))).decode()
    assert re.findall(r"(?:src|href|url|@import)\s*[=(]\s*[\"']?([^\"')\s]+)", text) == ["data:,"]
    assert "default-src 'none'" in text
    assert "unsafe" not in text.partition("<title>")[0]
    assert text.count("<script") == 2
    assert len(text) < 100_000


def test_the_page_has_the_numbers_of_the_matrix() -> None:
    matrix = with_estimates(matrix_of("a", "b", "c", "d"), (0, 1))
    data = data_of(render_matrix_page(page_of(matrix)))
    (content,) = data["matrices"]
    assert content["planes"] == ["stem", "head", "all"]
    upper = np.triu_indices(4, 1)
    for column in ("emd", "nfd", "fd", "emd_corrected", "low", "high", "se", "floor", "p", "q"):
        for plane, layer in enumerate(matrix.planes):
            found = unpacked(content["columns"][column][str(plane)], 4)
            assert found == pytest.approx(matrix.of(layer, column)[upper], rel=1e-7), column  # type: ignore[arg-type]
    assert sorted(content["arranged"][0]["order"]) == [0, 1, 2, 3]
    stress = plane_map(matrix.corrected("stem")).stress  # and 0 for distances without a correction
    assert content["maps"][0]["stress"] == pytest.approx(stress, abs=1e-6)
    plain = data_of(render_matrix_page(page_of(matrix_of("a", "b", "c", "d"))))["matrices"][0]
    assert plain["maps"][0]["stress"] == pytest.approx(0, abs=1e-6)
    assert [content["arranged"][0]["corrected"], plain["arranged"][0]["corrected"]] == [True, False]


@settings(max_examples=30)
@given(
    size=st.sampled_from([2, 5, EXACT_DATASETS, EXACT_DATASETS + 1, 90]), seed=st.integers(0, 2**31)
)
def test_many_distances_keep_their_first_digits(size: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    plane = np.exp(rng.normal(0, 5, (size, size)))
    plane[rng.random((size, size)) < 0.1] = np.nan
    plane[0, 1] = 0.0
    expected = plane[np.triu_indices(size, 1)]
    precision = 2.0**-24 if size <= EXACT_DATASETS else 2.0**-BITS
    np.testing.assert_allclose(unpacked(pack(plane), size), expected, rtol=1.01 * precision)


@given(seed=st.integers(0, 2**31))
def test_rounding_moves_no_pair_across_a_significance_level(seed: int) -> None:
    rng = np.random.default_rng(seed)
    q = rng.choice(RATES, (90, 90)) * (
        1 + rng.choice([1, -1], (90, 90)) * 10 ** rng.uniform(-17, -1, (90, 90))
    )
    q[0, 1:4] = RATES
    exact = q[np.triu_indices(90, 1)]
    seen = unpacked(pack(q, BITS_OF_A_TEST, RATES), 90).astype(float)
    for rate in RATES:
        assert ((seen < rate) == (exact < rate)).all()
    np.testing.assert_allclose(seen, exact, rtol=1.01 * 2.0**-BITS_OF_A_TEST)


def test_columns_without_numbers_take_no_space() -> None:
    assert pack(np.full((3, 3), np.nan)) == ""
    (content,) = data_of(render_matrix_page(page_of(matrix_of("a", "b"))))["matrices"]
    assert set(content["columns"]) == {"emd", "nfd", "fd"}


def test_the_least_useful_columns_are_left_out_for_size_and_named() -> None:
    matrix = with_estimates(matrix_of(*[f"d{i}" for i in range(30)]), (0, 1))
    whole = data_of(render_matrix_page(page_of(matrix)))
    assert whole["notes"] == []
    most = sum(len(t) for c in whole["matrices"][0]["columns"].values() for t in c.values())
    data = data_of(render_matrix_page(page_of(matrix), room=most // 2))
    columns = data["matrices"][0]["columns"]
    assert all("2" in of for of in columns.values())  # the plane that it opens with
    assert set(columns["emd"]) == {"0", "1", "2"}
    (note,) = data["notes"]
    assert note.startswith(
        "Left out of this page for its size, and in the file that vdna compare --out writes: "
    )
    left = {c for c, of in columns.items() if len(of) < 3}
    assert left
    assert all(f"{column} of " in note for column in left)
    two = with_estimates(matrix_of("a", "b"), (0, 1))
    all_but_one = len(pack(two.emd[0])) * (3 * len(PAGE_COLUMNS) - 1)
    (note,) = data_of(render_matrix_page(page_of(two), room=all_but_one))["notes"]
    assert note.endswith(" of 1 layer.")


def test_a_layer_whose_distances_are_left_out_has_no_other_columns() -> None:
    """This holds even if its other numbers, which are packed better, would fit."""
    rng = np.random.default_rng(0)
    matrix = with_estimates(matrix_of(*[f"d{i}" for i in range(30)]), (0, 1))
    noise = rng.random(matrix.emd.shape)
    matrix = replace(matrix, emd=matrix.emd * (noise + np.swapaxes(noise, 1, 2)))
    planes = [pack(matrix.emd[at]) for at in range(3)]
    last = sum(len(pack(matrix.stacked(column)[2])) for column in PAGE_COLUMNS)
    data = data_of(render_matrix_page(page_of(matrix), room=last + len(planes[0]) - 1))["matrices"][
        0
    ]
    assert all(set(of) == {"2"} for of in data["columns"].values())
    assert data["left_out"]["emd"] == list(matrix.planes[:2])
    assert data_of(render_matrix_page(page_of(matrix)))["matrices"][0]["left_out"] == {}


def test_a_dataset_that_cannot_be_corrected_is_named() -> None:
    data = data_of(render_matrix_page(page_of(with_single(matrix_of("a", "b", "tiny"), 2))))
    (note,) = data["notes"]
    assert note.startswith("Distances of tiny are not corrected")
    assert [plane["corrected"] for plane in data["matrices"][0]["arranged"]] == [True] * 3


def test_datasets_without_distances_are_named_and_come_last() -> None:
    data = data_of(render_matrix_page(page_of(with_nan(matrix_of("a", "b", "c", "d"), 1))))
    assert "b at no distance that is defined in all; last in order." in data["notes"]
    assert all(arranged["order"][-1] == 1 for arranged in data["matrices"][0]["arranged"])
    assert data["matrices"][0]["maps"][0]["points"][1] is None
    render_matrix_page(page_of(with_nan(matrix_of("a", "b"), 0, 1)))


def test_hostile_and_secret_strings_are_data() -> None:
    matrix = replace(matrix_of("a", "b"), layers=(HOSTILE, "head"))
    secret = "s3://b/x?X-Amz-Signature=0123456789abcdef and https://user:hunter2@host/y"
    panel = Panel(
        HOSTILE, ((HOSTILE, secret),), ((HOSTILE, 1),), (f"data:{secret}",), notes=(secret,)
    )
    page = Page([matrix], [panel] * 2, [Seen({}, secret)], secret, (secret, HOSTILE), HOSTILE)
    html = render_matrix_page(page)
    assert html.count(b"</script>") == 2
    assert b"<!--" not in html
    assert b"0123456789abcdef" not in html
    assert b"hunter2" not in html
    data = data_of(html)
    assert data["title"] == HOSTILE
    assert data["matrices"][0]["planes"][0] == HOSTILE
    assert "&lt;/script&gt;" in html.decode().partition("</title>")[0]


def test_two_lenses_on_one_page_and_no_other_datasets() -> None:
    matrix = matrix_of("a", "b", "c")
    data = data_of(render_matrix_page(page_of(matrix, replace(matrix, lens="sharp"))))
    assert [content["lens"] for content in data["matrices"]] == ["uniform", "sharp"]
    with pytest.raises(UsageError, match="same datasets"):
        render_matrix_page(page_of(matrix, matrix_of("a", "b", "x")))
    with pytest.raises(UsageError, match="3 datasets needs as many panels"):
        render_matrix_page(Page([matrix], [Panel("")]))
    with pytest.raises(UsageError, match=r"'page.txt' must end in \.html"):
        require_html("page.txt")


# What is gathered.


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    """Builds three datasets of real images, of which one has two files that are no images."""
    folder = tmp_path_factory.mktemp("built")
    network = tiny.install(folder)
    write_photos(folder / "photos/day", 40)
    write_photos(folder / "photos/night", 20, 100)
    write_photos(folder / "mixed", 9, 200)
    (folder / "mixed/<img src=x>.jpg").write_bytes(b"no image")
    (folder / "mixed/empty.jpg").write_bytes(b"")
    catalogue = Catalogue(str(folder / "catalogue"))
    requests = [
        Request(name, str(folder / name), max_failures=5, **network.options)  # type: ignore[arg-type]
        for name in ("photos/day", "photos/night", "mixed")
    ]
    build_datasets(catalogue, requests, InProcess(), Resources(workers=0, threads=2))
    return catalogue


def test_a_page_shows_what_the_catalogue_knows(built: Catalogue) -> None:
    page = gather_matrix_page(built, [compare(built)])
    mixed, day, night = page.panels
    assert (mixed.line, day.line) == ("9 images, 2 failed", "40 images")
    assert dict(mixed.reasons) == {"empty": 1, "not_an_image": 1}
    assert any("img src=x>.jpg: not_an_image" in unquote(text) for text in mixed.failures)
    version = built.find("mixed")
    facts = dict([*mixed.facts, *page.shared])
    for value in (version.dna, version.manifest, version.spec, version.source, version.software):
        assert any(value in text for text in facts.values()), value
    assert "cpu" in facts["numerics"]
    assert (facts["transparent"], facts["of a single colour"]) == ("0", "0")
    for panel in (mixed, day, night):
        assert len(panel.samples) == panels.SHOWN_IMAGES
        assert panel.notes == ()
        for sample in panel.samples:
            data = base64.b64decode(sample.image.removeprefix("data:image/webp;base64,"))
            with Image.open(io.BytesIO(data)) as image:
                assert (image.format, image.size) == ("WEBP", (SIDE, 72))
    assert not {s.name for s in mixed.samples} & {"empty.jpg", "<img src=x>.jpg"}
    assert len({s.name for s in day.samples}) == panels.SHOWN_IMAGES
    assert "commit 3 of" in page.about


def agree(found: Sequence[PairNeuron], explained: Explanation) -> None:
    """Checks that the page's neurons of a pair are the first of its explanation."""
    rows = explained.neurons.slice(0, pair_neurons.PAIR_NEURONS).to_pylist()
    for neuron, row, drawn in zip(found, rows, explained.shown, strict=False):
        assert (neuron.layer, neuron.neuron) == (row["layer"], row["neuron"])
        assert (neuron.emd, neuron.weight, neuron.q) == (row["emd"], row["weight"], row["q"])
        assert neuron.corrected == (row["emd_corrected"], row["low"], row["high"])
        assert (neuron.low, neuron.high) == (drawn.low, drawn.high)
        assert (neuron.a, neuron.b) == (drawn.a, drawn.b)
    assert len(found) == len(rows)


def test_stages_are_of_the_network_and_not_of_the_layers_that_were_compared(
    built: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stages(matrix: Matrix) -> list[str]:
        page = gather_matrix_page(built, [matrix], samples=0, pairs=0)
        found: list[str] = data_of(render_matrix_page(page))["matrices"][0]["stages"]
        return found

    matrix = compare(built)
    assert set(stages(matrix)) == {""}  # a user's own network
    names = ("w", "x", "y", "z", *matrix.layers)
    monkeypatch.setattr(panels, "network_layers", lambda name: names)
    expected = stages_of(names, names)[4:]
    assert stages(matrix)[: len(matrix.layers)] == list(expected)
    assert expected[-1] == "objects"
    assert "colour and edges" not in expected


@pytest.mark.parametrize("name", [field.name for field in fields(Preprocess)])
def test_every_field_of_the_preprocessing_is_among_the_facts(built: Catalogue, name: str) -> None:
    spec = built.spec(built.find(built.names()[0]).spec)
    rule = spec.preprocess
    value = getattr(rule, name)
    other = {
        "mean": (0.1, 0.2, 0.3),
        "std": (0.7, 0.8, 0.9),
        "resize": "other",
        "crop": "other",
        "colour": "other",
        "exif": "other",
        "alpha": "white",
        "jpeg": "scaled",
        "decoder": "raw16@1",
    }.get(name, value + 1 if isinstance(value, int) else None)
    assert other is not None
    assert other != value
    changed = copy(rule)
    object.__setattr__(changed, name, other)  # whether the value is allowed is not asked
    facts = dict(spec_facts(spec))
    odd = copy(spec)
    object.__setattr__(odd, "preprocess", changed)
    there = {key: fact for key, fact in spec_facts(odd) if key != "spec"}
    assert there.keys() == facts.keys() - {"spec"}
    assert any(fact != facts[key] for key, fact in there.items())


def test_neurons_are_those_of_the_explanation(built: Catalogue) -> None:
    matrix = compare(built)
    page = gather_matrix_page(built, [matrix], samples=0)
    (seen,) = page.seen
    dnas = [built.load(name) for name in matrix.names]
    assert set(seen.neurons) == {(0, 1), (0, 2), (1, 2)}
    q = []
    for (i, j), found in seen.neurons.items():
        agree(
            found, explain(built, matrix.names[i], matrix.names[j], top=pair_neurons.PAIR_NEURONS)
        )
        q += [neuron.q for neuron in found]
        each = emd(dnas[i], dnas[j], per_neuron=True)
        for neuron in found:
            at = dnas[i].slice_of(neuron.layer).start + neuron.neuron
            assert each[at] == pytest.approx(neuron.emd, rel=1e-5)
            assert dnas[i].low[at] <= neuron.low < neuron.high <= dnas[i].high[at] + 1e-12
            assert max(*neuron.a, *neuron.b) == 999
            shares = [d.distributions()[at] for d in (dnas[i], dnas[j])]
            if len(neuron.a) == tiny.BINS:  # nothing cut, nothing joined
                most = max(share.max() for share in shares)
                for told, share in zip((neuron.a, neuron.b), shares, strict=True):
                    assert told == pytest.approx(tuple(999 * share / most), abs=0.6)
    assert all(value is not None for value in q)
    assert all(panel.notes == ("no sample images",) for panel in page.panels)


def test_without_error_bars_neurons_are_ranked_plain_and_not_tested(built: Catalogue) -> None:
    matrix = compare(built, error_bars=False)
    (seen,) = gather_matrix_page(built, [matrix], samples=0).seen
    dnas = [built.load(name) for name in matrix.names]
    for (i, j), found in seen.neurons.items():
        each = emd(dnas[i], dnas[j], per_neuron=True)
        assert [n.emd for n in found] == pytest.approx(sorted(each, reverse=True)[:6], rel=1e-5)
        assert {(n.corrected, n.q) for n in found} == {(None, None)}


def test_fewer_pairs_are_tested_for_wide_networks(
    built: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pair_neurons, "TESTS", sum(tiny.WIDTHS))
    (seen,) = gather_matrix_page(built, [compare(built)], samples=0, pairs=1).seen
    assert len(seen.neurons) == 1
    assert seen.note.startswith(
        "To keep this page small, it has the neurons of only the 1 nearest of 3 pairs"
    )


def test_with_many_lenses_each_has_fewer_pairs(
    built: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pair_neurons, "MOST_PAIRS", 2)
    matrix = compare(built)
    for lenses, pairs in ((1, 2), (pair_neurons.LENSES, 2), (2 * pair_neurons.LENSES, 1)):
        page = gather_matrix_page(
            built, [matrix] * lenses, lenses=[None] * lenses, samples=0, pairs=1
        )
        assert [len(seen.neurons) for seen in page.seen] == [pairs] * lenses


def test_through_a_lens_neurons_are_ranked_by_what_they_add(built: Catalogue) -> None:
    weights = {0: 0.001, 1: -5.0, 3: 6.0}
    lens = Lens.from_rows(
        "few", built.spec(built.find("mixed").spec), [("a", *w) for w in weights.items()]
    )
    matrices = [compare(built), compare(built, lens=lens)]
    page = gather_matrix_page(built, matrices, lenses=[None, lens], samples=0)
    plain, seen = page.seen
    assert plain.neurons == gather_matrix_page(built, matrices[:1], samples=0).seen[0].neurons
    assert (plain.weightless, seen.weightless) == ((), ("b",))
    names = matrices[0].names
    for (i, j), found in seen.neurons.items():
        assert {neuron.neuron for neuron in found} == set(weights)
        agree(found, explain(built, names[i], names[j], lens=lens, top=pair_neurons.PAIR_NEURONS))
    data = data_of(render_matrix_page(page))
    assert [len(of["neurons"]["0-1"]) for of in data["matrices"]] == [6, 3]
    assert data["matrices"][1]["weightless"] == ["b"]
    (few,) = data["notes"]  # and not one note for each dataset of a layer without weight
    assert few.startswith("error bars were checked on 16 images or more")
    only = data_of(
        render_matrix_page(gather_matrix_page(built, matrices[1:], lenses=[lens], samples=0))
    )
    assert only["title"] == "Visual DNA of 3 datasets through lens few"
    for lenses in ([], [None, None], [lens]):
        with pytest.raises(UsageError, match=r"give the page that lens|needs one for each"):
            gather_matrix_page(built, matrices, lenses=lenses, samples=0)


@pytest.fixture
def growing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Catalogue:
    """Makes `a` and `b`, where `a` gets another version as soon as the two are compared."""
    catalogue = Catalogue(str(tmp_path / "catalogue"))

    def commit(name: str, count: int, first: int) -> None:
        here = [
            replace(entry, uri=(tmp_path / f"gone-{name}-{k}.jpg").as_uri())
            for k, entry in enumerate(entries(name, count, first))
        ]
        manifest = plan(here)
        commit_dataset(catalogue, name, manifest, [hand_made(s) for s in manifest.shards])

    def compared(*words: Any, **options: Any) -> Matrix:
        found = compare(*words, **options)
        if catalogue.head().number == 2:
            commit("a", 7, 0)
        return found

    commit("a", 5, 0)
    commit("b", 5, 50)
    monkeypatch.setattr("pipeline.comparing.compare", compared)
    return catalogue


def test_a_page_describes_only_the_versions_that_were_compared(growing: Catalogue) -> None:
    old = growing.find("a")
    matrix = matrix_module.compare(growing)
    assert growing.find("a").dna != old.dna == matrix.members["a"]
    with pytest.raises(UsageError, match=f"a at commit 3 is dna .*{old.dna}; give the commit"):
        gather_matrix_page(growing, [matrix], samples=0)
    page = gather_matrix_page(growing, [matrix], at=2, samples=0)
    assert ("dna", old.dna) in page.panels[0].facts


@pytest.mark.parametrize("command", ["compare", "report"])
def test_a_commit_made_meanwhile_is_not_on_the_page(
    growing: Catalogue, tmp_path: Path, command: str
) -> None:
    old, out = growing.find("a").dna, str(tmp_path / "page.html")
    words = {"compare": ["compare", "--html", out], "report": ["report", "--out", out]}[command]
    done = CliRunner().invoke(app, [*words, "-c", growing.root])
    assert done.exit_code == 0, done.output
    assert growing.head().number == 3
    data = data_of((tmp_path / "page.html").read_bytes())
    assert "commit 2 of" in data["about"]
    assert ["dna", old] in data["datasets"][0]["facts"]
    assert data["datasets"][0]["line"] == "5 images"


def test_with_many_pairs_each_dataset_has_its_nearest(built: Catalogue) -> None:
    matrix = compare(built)
    page = gather_matrix_page(built, [matrix], samples=0, pairs=1)
    upper = {(i, j): matrix.corrected()[i, j] for i in range(3) for j in range(i + 1, 3)}
    farthest = max(upper, key=lambda pair: upper[pair])
    assert set(page.seen[0].neurons) == set(upper) - {farthest}
    assert page.seen[0].note.startswith(
        "To keep this page small, it has the neurons of only the 2 nearest of 3 pairs"
    )


def test_pairs_are_filled_up_with_the_next_nearest() -> None:
    distances = np.abs(np.subtract.outer(*[2.0 ** np.arange(13)] * 2))
    known = [(i, j) for i in range(13) for j in range(i + 1, 13)]
    nearest = sorted(known, key=lambda pair: distances[pair])
    assert len(pair_neurons._nearest(distances, known, 78, 300)) == 78
    assert set(pair_neurons._nearest(distances, known, 67, 300)) == set(nearest[:67])
    assert len(pair_neurons._nearest(distances, known, 66, 20)) == 20
    assert set(pair_neurons._nearest(distances, known, 1, 300)) == {
        (max(0, i - 1), max(1, i)) for i in range(13)
    }


def test_missing_images_are_noted_and_the_page_is_complete(tmp_path: Path) -> None:
    catalogue = Catalogue(f"memory://{uuid.uuid4().hex}")
    for name, first in (("a", 0), ("b", 50)):
        here = [
            replace(entry, uri=(tmp_path / f"gone-{k}.jpg").as_uri())
            for k, entry in enumerate(entries(name, 5, first))
        ]
        manifest = plan(here)
        commit_dataset(catalogue, name, manifest, [hand_made(s) for s in manifest.shards])
    page = gather_matrix_page(catalogue, [compare(catalogue)])
    for panel in page.panels:
        assert panel.samples == ()
        (note,) = panel.notes
        assert note.startswith("sample images cannot be read: ")
        assert "gone-" in note
    size = save_page(render_matrix_page(page), str(tmp_path / "page.html"))
    assert (tmp_path / "page.html").stat().st_size == size


def test_one_bad_sample_does_not_remove_others_and_far_ones_are_not_unpacked(
    built: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(thumbnails, "MAX_SHOWN_BYTES", 2_000)
    skipped = 0
    for panel in gather_matrix_page(built, [compare(built)], pairs=0).panels:
        bad = " ".join(panel.notes).count("too_many_bytes")
        tried = len(panel.samples) + bad
        assert tried >= panels.SHOWN_IMAGES or bad == 9 - len(panel.samples)
        skipped += bad
    assert skipped
    near = entries("a", 1)[0]
    assert not is_far(replace(near, position=2**40))
    assert not is_far(replace(near, position=2**40, access="tar"))
    assert not is_far(replace(near, position=2**20, access="tar gz"))
    assert is_far(replace(near, position=2**40, access="tar gz"))


def test_histograms_that_cannot_be_read_are_noted(
    built: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: object, **__: object) -> bytes:
        raise SourceError("the file is gone")

    matrix = compare(built)
    monkeypatch.setattr(pair_neurons, "NEURONS_METHOD", 0)  # none of these are kept
    monkeypatch.setattr(built, "open_file", gone)
    monkeypatch.setattr(built, "read_checked", gone)
    page = gather_matrix_page(built, [matrix], samples=0)
    assert page.seen == [Seen({}, "Histograms cannot be read: the file is gone")]
    (note, *_) = page.panels[matrix.names.index("mixed")].notes
    assert note == "the failures cannot be read: the file is gone"
    render_matrix_page(page)


def test_samples_are_drawn_by_hash_one_of_each_photograph_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The draw is the same every time, and not the first by name."""
    network = tiny.install(tmp_path)
    folder = tmp_path / "crops"
    folder.mkdir()
    for at, name in enumerate(["barn", "cat", "dune"]):
        for k in range(8 if name == "barn" else 4):
            photo(100 * at + k).save(folder / f"{name}-{k}.jpg")
    for k in range(6):  # one photograph under other names
        photo(777).resize((96 + k, 72)).save(folder / f"zebra{chr(97 + k)}-0.jpg")
    catalogue = Catalogue(str(tmp_path / "catalogue"))
    requests = [Request(name, str(folder), **network.options) for name in ("a", "b")]  # type: ignore[arg-type]
    build_datasets(catalogue, requests, InProcess(), Resources(workers=0, threads=2))
    drawn = [
        [sample.name for sample in panel.samples]
        for panel in gather_matrix_page(catalogue, [compare(catalogue)], pairs=0).panels
    ]
    assert drawn[0] == drawn[1]
    kinds = [name.partition("-")[0] for name in drawn[0]]
    assert {"barn", "cat", "dune"} <= set(kinds[:4])
    assert sum(kind.startswith("zebra") for kind in kinds) == 1
    assert sorted(drawn[0]) != sorted(path.name for path in folder.iterdir())[: len(drawn[0])]


def test_one_photograph_is_known_again_at_another_size() -> None:
    prints = [
        [fingerprint(np.asarray(photo(seed, *size))) for size in ((96, 72), (80, 61))]
        for seed in range(12)
    ]
    for i, (one, resized) in enumerate(prints):
        assert is_one_photograph(one, resized)
        for other, _ in prints[:i]:
            assert not is_one_photograph(one, other)


def test_a_thumbnail_is_the_whole_image_read_by_the_rule_of_its_spec() -> None:
    """Orientation, transparency and colours are as the network sees them; nothing is cut off."""
    image = Image.new("RGB", (200, 50), (0, 0, 255))
    image.paste((255, 0, 0), (0, 0, 20, 50))
    out = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # turned to the right
    image.save(out, "JPEG", exif=exif, quality=95)
    upright = thumbnails.shrunk(out.getvalue(), THUMBNAIL)
    lying = thumbnails.shrunk(out.getvalue(), replace(THUMBNAIL, exif="ignore", crop="center"))
    assert (upright.shape, lying.shape) == ((SIDE, SIDE // 4, 3), (SIDE // 4, SIDE, 3))
    assert lying[12, 3, 0] > 200 > 100 > lying[12, 40, 0]
    assert upright[3, 12, 0] > 200 > 100 > upright[40, 12, 0]
    clear = Image.new("RGBA", (40, 40), (0, 200, 0, 0))
    out = io.BytesIO()
    clear.save(out, "PNG")
    mean = thumbnails.shrunk(out.getvalue(), THUMBNAIL).mean(axis=(0, 1))
    assert mean == pytest.approx((0, 200, 0), abs=2)
    laid = thumbnails.shrunk(out.getvalue(), replace(THUMBNAIL, alpha="white"))
    assert laid.mean(axis=(0, 1)) == pytest.approx((255, 255, 255), abs=2)
    longest = thumbnails.shrunk(_png(Image.new("RGB", (900, 2))), THUMBNAIL)
    assert longest.shape == (1, SIDE, 3)


def _png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def test_images_are_read_by_the_rule_of_their_spec_or_not_at_all(built: Catalogue) -> None:
    version = built.find(built.names()[0])
    assert thumbnails.rule_of(built, version) == built.spec(version.spec).preprocess
    with pytest.raises(VdnaError, match="ab" * 16):
        thumbnails.rule_of(built, replace(version, spec="ab" * 16))


def test_a_thumbnail_is_decoded_within_limits() -> None:
    def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
        out = io.BytesIO()
        image.save(out, kind)
        return out.getvalue()

    picture = encoded(photo(1))
    data = base64.b64decode(thumbnail(picture).partition(",")[2])
    with Image.open(io.BytesIO(data)) as small:
        shown = np.asarray(small.convert("RGB"), float)
    whole = load(picture, replace(THUMBNAIL, height=72)).values
    assert np.abs(shown - 255 * whole).mean() < 6
    with pytest.raises(BadImage, match="too_many_pixels"):
        thumbnail(encoded(Image.new("1", (10_000, 10_000))))
    with pytest.raises(BadImage, match="not_an_image"):
        thumbnail(b"<html>" * 20)
