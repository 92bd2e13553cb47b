"""Tests that everything the commands do works from Python, with types and readable results."""

from __future__ import annotations

import html
import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib import pyplot
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner

import pipeline
from jobs.app import app
from pipeline import (
    Calibration,
    Catalogue,
    Failure,
    Ranges,
    RankRequest,
    RayEngine,
    Request,
    Resources,
    Result,
    build,
    building,
    compare,
    emd,
    explain,
    fit_lens,
    html_page,
    make_dna,
    notebook,
    rank,
    refresh,
    report,
    verify,
)
from pipeline.dna import DNA
from pipeline.errors import NotFound, UsageError
from pipeline.explaining import LOOK, Reaction
from pipeline.storage import local_path
from tests.support import tiny_network
from tests.support.builders import write_photos


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> tiny_network.Place:
    return tiny_network.install(tmp_path_factory.mktemp("network"))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    write_photos(folder / "a", 24)
    for path in write_photos(folder / "b", 24, first_seed=100):  # brighter, so they differ
        Image.open(path).point(lambda value: 128 + value // 2).save(path, quality=90)
    return folder


@pytest.fixture(scope="module")
def root(place: tiny_network.Place, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    root = str(tmp_path_factory.mktemp("catalogue"))
    for name in ("a", "b"):
        result = build(root, Request(name, str(photos / name), **options(place)))
        assert (result.changed, result.version.images) == (True, 24)
    return root


def options(place: tiny_network.Place) -> dict[str, Any]:
    return dict(place.options)


def test_a_dataset_is_built_once(root: str, place: tiny_network.Place, photos: Path) -> None:
    result = build(Catalogue(root), Request("a", str(photos / "a"), **options(place)))
    assert not result.changed
    assert repr(result) == "<Result a: 24 images, unchanged>"


def test_all_commands_work_from_python(
    root: str, place: tiny_network.Place, photos: Path, tmp_path: Path
) -> None:
    matrix = compare(root)
    assert list(matrix.names) == ["a", "b"]
    assert explain(root, "a", "b").versions.keys() == {"a", "b"}
    ranking = rank(root, RankRequest(str(photos / "b"), "a", weights=place.weights))
    assert ranking.ranked == 24
    fitted = fit_lens(root, "sees-b", focus="b:a", top=3)
    assert compare(root, lens="sees-b").lens_digest == fitted.lens.digest
    seen = rank(root, RankRequest(str(photos / "b"), "a", weights=place.weights), lens="sees-b")
    assert seen.lens == "sees-b"
    checked = verify(root, deep=True, sample=1, seed=0, weights=place.weights)
    assert checked.ok, checked.findings
    assert "--all" in checked.note
    everything = verify(root, all_versions=True)
    assert everything.ok, everything.findings
    assert (everything.note, everything.findings[0].check) == ("", "log")
    page = report(root, str(tmp_path / "page.html"), samples=1)
    assert (tmp_path / "page.html").read_bytes() == page.html
    config = tmp_path / "datasets.yaml"
    defaults = {name: str(value) for name, value in place.options.items()} | {"bins": 8}
    config.write_text(f"datasets: [{{name: a, source: {photos / 'a'}}}]\ndefaults: {defaults}\n")
    done = refresh(str(config), root)
    done.require_ok()
    assert [result.changed for result in done.datasets] == [False]
    assert repr(done) == "<Refreshed: 1 dataset built, 0 changed, all is well>"
    assert "Result a: 24 images, unchanged" in done._repr_html_()
    assert done.datasets[0]._repr_html_().startswith("<table><caption>Result a: 24 images")
    rows = done.to_pandas()[["dataset", "images", "changed"]].to_numpy().tolist()
    assert rows == [["a", 24, False]]
    assert done.to_pandas("gate").empty


def test_a_text_in_place_of_a_list_is_refused_and_not_taken_for_its_letters(root: str) -> None:
    calls: list[tuple[str, Callable[[], object]]] = [
        ("names", lambda: compare(root, "ab")),
        ("names", lambda: pipeline.nearest(root, "ab", top=1)),
        ("candidates", lambda: pipeline.suggest(root, "a", "b")),
        ("names", lambda: pipeline.find_overlaps(root, "ab")),
        ("names", lambda: verify(root, "ab")),
        ("names", lambda: pipeline.erase(root, "x.png", reason="asked for")),
        ("names", lambda: pipeline.preview_erasure(root, "x.png")),
        ("lenses", lambda: report(root, lenses="sees-b")),
        ("rankings", lambda: report(root, site="site", rankings="r")),
        ("apart", lambda: html_page(root, compare(root), apart="ab")),
    ]
    for name, call in calls:
        with pytest.raises(UsageError, match=rf"^{name} is '(.*)'; .*a list, .*`{name}=\['\1'\]`"):
            call()


def test_results_have_a_readable_repr_and_table(
    root: str, place: tiny_network.Place, photos: Path
) -> None:
    ranking = rank(root, RankRequest(str(photos / "b"), "a", weights=place.weights))
    fitted = fit_lens(root, "sees-b", focus="b:a", top=3)
    distance = emd(Catalogue(root).load("a"), Catalogue(root).load("b"))
    results = [compare(root), explain(root, "a", "b"), verify(root), report(root, samples=0)]
    for result in (*results, ranking, fitted, distance):
        assert result is distance or type(result).__name__ in repr(result)
        assert result._repr_html_().startswith(("<table", "<iframe"))
        if hasattr(result, "to_pandas"):
            assert same_tables(result.to_pandas(), result.to_polars())
            assert len(result.to_pandas())


def same_tables(one: Any, other: Any) -> bool:
    """Whether a table of pandas and one of Polars have the same columns and cells."""
    rows = zip(one.to_numpy().tolist(), other.rows(), strict=True)
    return list(one.columns) == other.columns and all(
        str(a) == str(b) or a == b or (a != a and b is None) or (a is None and b is None)
        for left, right in rows
        for a, b in zip(left, right, strict=True)
    )


def test_a_page_of_each_result_is_saved_as_its_command_does(
    root: str, place: tiny_network.Place, photos: Path, tmp_path: Path
) -> None:
    fit_lens(root, "sees-b", focus="b:a", top=3)
    weights = place.weights
    found = explain(root, "a", "b", lens="sees-b", top=2, look=LOOK, weights=weights)
    ranking = rank(root, RankRequest(str(photos / "b"), "a", weights=place.weights))
    pages = {
        "compare a b": html_page(root, compare(root)),
        f"explain a b --lens sees-b --top 2 --weights {weights}": html_page(
            root, found, lens="sees-b"
        ),
        f"rank {photos / 'b'} --to a --weights {place.weights} --workers 0": html_page(
            root, ranking
        ),
    }
    for words, page in pages.items():
        page.save(str(tmp_path / "python.html"))
        command = [*words.split(), "-c", root, "--html", str(tmp_path / "command.html")]
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 0, done.output
        assert (tmp_path / "python.html").read_bytes() == (tmp_path / "command.html").read_bytes()
        assert b"data:image/webp" in page.html
        assert page._repr_html_().startswith("<iframe")
    with pytest.raises(UsageError, match="through lens sees-b"):
        html_page(root, compare(root, lens="sees-b"))
    with pytest.raises(UsageError, match="the page of a ranking takes no `lens`; leave it out"):
        html_page(root, ranking, lens="sees-b")
    with pytest.raises(UsageError, match=r"`weights` is for .* give `look=60`, too"):
        explain(root, "a", "b", weights=weights)


def test_tables_are_saved_as_the_commands_do(root: str, tmp_path: Path) -> None:
    for result, words in (
        (compare(root), ["compare", "a", "b"]),
        (explain(root, "a", "b"), ["explain", "a", "b"]),
    ):
        out = str(tmp_path / "python.parquet")
        result.save(out)
        command = [*words, "-c", root, "--out", str(tmp_path / "command.parquet")]
        assert CliRunner().invoke(app, command).exit_code == 0
        assert Path(out).read_bytes() == (tmp_path / "command.parquet").read_bytes()
        with pytest.raises(UsageError, match=r"out is 'a\.csv'; .* written as Parquet"):
            result.save("a.csv")


def test_an_image_that_a_neuron_reacts_to_is_read_again(root: str, photos: Path) -> None:
    (of_a, of_b), *_ = explain(root, "a", "b", top=1).reactions
    assert of_a
    assert of_b
    for reaction in (of_a[0], of_b[0]):
        read = reaction.image()
        with Image.open(local_path(reaction.uri)) as stored:
            assert np.array_equal(np.asarray(read), np.asarray(stored.convert("RGB")))
    with pytest.raises(NotFound, match=r"it is not known how .* was listed"):
        Reaction(of_a[0].uri, "", 1.0).image()


def test_a_calibration_has_a_readable_repr_and_table() -> None:
    ranges = Ranges((("stem", 2), ("head", 1)), np.array([-1.0, -3.0, 0.0]), np.arange(1.0, 4.0))
    failure = Failure("file:///a.jpg", "", "truncated", "it ends early")
    measured = Calibration(ranges, 1200, (failure,), {}, 0, 0)
    assert repr(measured) == (
        "<Calibration of 3 neurons in 2 layers on 1,200 images, 1 could not be read>"
    )
    assert "<td>stem</td><td>2</td><td>-3</td><td>2</td>" in measured._repr_html_()
    table = measured.to_pandas()
    assert table.to_numpy().tolist() == [
        ["stem", 0, -1.0, 1.0],
        ["stem", 1, -3.0, 2.0],
        ["head", 0, 0.0, 3.0],
    ]


def test_without_pandas_a_table_names_the_extra(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notebook, "find_spec", lambda name: None)
    for result in (compare(root), verify(root), explain(root, "a", "b")):
        with pytest.raises(UsageError, match=r"pip install \"vdna-pipeline\[notebook\]\""):
            result.to_pandas()
        with pytest.raises(UsageError, match=r"pip install \"vdna-pipeline\[polars\]\""):
            result.to_polars()


def test_a_dna_shows_its_layers_and_neurons(root: str) -> None:
    dna = Catalogue(root).load("a", layers=["b", "a"])
    assert dna._repr_html_().startswith(f"<table><caption>{html.escape(repr(dna))}")
    assert "<td>b</td><td>3</td><td>4</td>" in dna._repr_html_()
    table = dna.to_polars()
    assert table["layer"].to_list() == ["b"] * 3 + ["a"] * 4
    assert np.array_equal(np.stack(table["counts"].to_numpy()), dna.counts)
    assert np.array_equal(dna.to_pandas()["underflow"], dna.underflow)
    share = f"{dna.underflow[:3].sum() / (24 * 3 * 4):.2%}"
    assert f"<td>3</td><td>4</td><td>{share}</td>" in dna._repr_html_()


def test_a_dna_is_drawn_by_layer_by_neuron_and_alone(root: str) -> None:
    dna = Catalogue(root).load("a")
    every = dna.plot()
    assert [label.get_text() for label in every.get_yticklabels()] == ["a", "b"]
    drawn = np.asarray(every.images[0].get_array())
    assert np.allclose(drawn[1], np.sqrt(dna.distributions(slice(4, 7)).mean(axis=0)))
    assert np.asarray(dna.plot("b").images[0].get_array()).shape == (3, dna.spec.bins)
    alone = dna.plot("b", 2, ax=dna.plot("b", 1))
    steps = alone.patches[-1].get_data()
    assert np.array_equal(steps.values, dna.distributions(slice(6, 7))[0])
    assert (steps.edges[0], steps.edges[-1]) == (dna.low[6], dna.high[6])
    with pytest.raises(UsageError, match=r"layer b has no neuron 3; it has 0 to 2"):
        dna.plot("b", 3)
    with pytest.raises(UsageError, match="of which layer"):
        dna.plot(neuron=3)
    pyplot.close("all")


def test_dnas_in_memory_have_the_error_bars_of_the_same_images_in_a_catalogue(
    root: str, place: tiny_network.Place, photos: Path
) -> None:
    matrix = compare(root)
    made = [make_dna(photos / name, **options(place)) for name in ("a", "b")]
    loaded = [Catalogue(root).load(name, folds=True) for name in ("a", "b")]
    for distance in (emd(*made), emd(*loaded), emd(made[0], loaded[1])):
        for name in ("emd_corrected", "se", "low", "high", "floor", "p"):
            assert getattr(distance, name) == matrix.of("all", name)[0, 1]
            assert distance.estimates.layers["b"][name] == matrix.of("b", name)[0, 1]
    assert 0 < distance.low < distance.high
    one = emd(*(Catalogue(root).load(name, layers=["b"], folds=True) for name in ("a", "b")))
    assert one.high == matrix.of("b", "high")[0, 1]


def test_arrays_in_memory_have_error_bars(
    pixels: list[NDArray[np.uint8]], place: tiny_network.Place
) -> None:
    distance = emd(make_dna(pixels[:12], **options(place)), make_dna(pixels[12:], **options(place)))
    assert distance.low <= distance.emd_corrected <= distance.high < 2 * distance


def test_a_ranking_is_drawn_with_a_bar_for_each_image(
    root: str, place: tiny_network.Place, photos: Path
) -> None:
    ranking = rank(root, RankRequest(str(photos / "b"), "a", weights=place.weights, top=2))
    drawn = [bar.get_width() for bar in ranking.plot().patches]
    assert drawn == ranking.to_polars()["score"].to_list() == sorted(drawn)
    pyplot.close("all")


def test_a_failed_check_is_shown_by_the_verification(root: str, tmp_path: Path) -> None:
    finding = pipeline.catalogue.Finding("a", "sum", False, "a<b")  # type: ignore[attr-defined]
    wrong = pipeline.Verification((finding,))
    assert not wrong.ok
    assert "1 wrong: a<b" in repr(wrong)
    assert "a&lt;b" in wrong._repr_html_()


def test_progress_is_shown_if_asked(
    place: tiny_network.Place, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_dna(photos / "a", progress=True, **options(place))
    assert "24/24 images" in capsys.readouterr().err
    make_dna(photos / "a", **options(place))
    assert capsys.readouterr().err == ""


class Tensors(torch.utils.data.Dataset[tuple[torch.Tensor, int]]):
    """A torch dataset of (image, label)."""

    def __init__(self, pixels: list[NDArray[np.uint8]], *, floats: bool) -> None:
        self._pixels, self._floats = pixels, floats

    def __len__(self) -> int:
        return len(self._pixels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        tensor = torch.tensor(self._pixels[index]).permute(2, 0, 1)
        return (tensor.float() / 255 if self._floats else tensor), index


@pytest.fixture(scope="module")
def pixels(photos: Path) -> list[NDArray[np.uint8]]:
    return [np.asarray(Image.open(path)) for path in sorted((photos / "a").iterdir())]


@pytest.fixture(scope="module")
def expected(pixels: list[NDArray[np.uint8]], place: tiny_network.Place) -> DNA:
    return make_dna(pixels, **options(place))


@pytest.mark.parametrize("floats", [False, True])
def test_a_torch_dataset_counts_as_its_arrays_do(
    pixels: list[NDArray[np.uint8]], expected: DNA, place: tiny_network.Place, floats: bool
) -> None:
    assert make_dna(Tensors(pixels, floats=floats), **options(place)).identical(expected)


def test_a_hugging_face_dataset_counts_as_its_arrays_do(
    pixels: list[NDArray[np.uint8]], expected: DNA, place: tiny_network.Place
) -> None:
    datasets = pytest.importorskip("datasets")
    images = [Image.fromarray(array) for array in pixels]
    features = datasets.Features({"photo": datasets.Image(), "n": datasets.Value("int64")})
    rows = {"photo": images, "n": list(range(len(images)))}
    found = datasets.Dataset.from_dict(rows, features=features)
    with pytest.raises(UsageError, match=r"image \d+ has no column 'image'; it has photo, n"):
        make_dna(found, **options(place))
    assert make_dna(found, image_column="photo", **options(place)).identical(expected)


def test_paths_urls_and_iterators_are_sources(
    photos: Path, expected: DNA, pixels: list[NDArray[np.uint8]], place: tiny_network.Place
) -> None:
    paths = sorted((photos / "a").iterdir())
    by_folder = make_dna(photos / "a", **options(place))
    assert make_dna(paths, **options(place)).identical(by_folder)
    urls = [path.as_uri() for path in paths]
    assert make_dna(urls, **options(place)).identical(by_folder)
    relative = [os.path.relpath(path) for path in paths]
    assert make_dna(relative, **options(place)).identical(by_folder)
    assert np.array_equal(by_folder.counts, expected.counts)
    assert make_dna((array for array in pixels), **options(place)).identical(expected)
    as_pictures = [Image.fromarray(array) for array in pixels]
    assert make_dna(as_pictures, **options(place)).identical(expected)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            [np.zeros((4, 4, 3), np.uint8), "a.jpg"],
            r"image 0 has type ndarray, and others are paths",
        ),
        ([torch.full((3, 4, 4), 2.0)], r"image 0 is a tensor of floats outside 0 to 1"),
        ([object()], r"image 0 has type object; give arrays"),
        (7, r"the source has type int; give a path or url"),
    ],
    ids=["mixed", "normalised", "no image", "number"],
)
def test_what_is_no_source_is_refused(source: Any, message: str, place: tiny_network.Place) -> None:
    with pytest.raises(UsageError, match=message):
        make_dna(source, **options(place))


def test_a_device_is_named_or_refused(place: tiny_network.Place, photos: Path) -> None:
    with pytest.raises(UsageError, match=r"device is 'tpu'; it must be cpu or cuda"):
        make_dna(photos / "a", device="tpu", **options(place))
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="no GPU"):
            make_dna(photos / "a", device="cuda", **options(place))


def test_a_function_that_wraps_another_has_the_same_parameters() -> None:
    """`pipeline.make_dna` and the function that it wraps take the same arguments."""
    from pipeline.building import make_dna as rooms_own

    ours = inspect.signature(make_dna).parameters
    assert list(ours) == list(inspect.signature(rooms_own).parameters)


def test_a_build_is_planned_with_the_resources_of_its_engine(
    root: str, place: tiny_network.Place, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Resources decide the device, so a build must plan with those of its workers."""
    asked: list[Resources | None] = []

    def spy(*arguments: Any, **_: Any) -> list[Any]:
        asked.append(arguments[3])
        return [Result("a", Catalogue(root).find("a"), False, 0, ())]

    monkeypatch.setattr(building, "build_datasets", spy)
    request = Request("a", str(photos / "a"), **options(place))
    engine = RayEngine(Resources(threads=3))
    build(root, request, engine=engine)
    build(root, request, engine=engine, resources=Resources(threads=1))
    assert [of and of.threads for of in asked] == [3, 1]


def test_to_verify_a_catalogue_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="there is no catalogue at"):
        pipeline.verify(str(tmp_path / "mistyped"))
