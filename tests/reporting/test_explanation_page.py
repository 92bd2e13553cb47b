"""Tests the page of an explanation: its numbers, its images, and its use in a browser."""

from __future__ import annotations

import os
import shutil
import tarfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image, ImageEnhance
from selenium.webdriver.common.keys import Keys
from typer.testing import CliRunner

from jobs.app import app
from pipeline import storage
from pipeline.building import Request, build_datasets
from pipeline.catalogue import Catalogue
from pipeline.comparing import compare
from pipeline.dna import Lens
from pipeline.engine import InProcess
from pipeline.errors import StorageError, TransientError
from pipeline.explaining import Explanation, Overlay, explain
from pipeline.explaining.reactions import Reaction
from pipeline.reporting import gather_explanation, render_explanation
from pipeline.reporting.html import explanation_page as explained
from pipeline.reporting.html import thumbnails
from pipeline.reporting.html.dataset_panels import gather_matrix_page
from pipeline.reporting.html.explanation_page import MOST_IMAGES, ShownImage, Why
from pipeline.reporting.html.frame import save_page
from pipeline.reporting.html.matrix_page import render_matrix_page
from pipeline.reporting.html.page_data import Panel
from pipeline.reporting.html.thumbnails import thumbnail
from pipeline.spec import Resources
from tests.reporting.test_browser import HOSTILE, PIXEL
from tests.reporting.test_matrix_page import data_of
from tests.support import browser
from tests.support import tiny_network as tiny
from tests.support.browser import Reader
from tests.support.builders import write_photos


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    """Builds photos as files, one with a hostile name, and dark ones in an archive.

    `bare` has no exemplars.
    """
    folder = tmp_path_factory.mktemp("built")
    network = tiny.install(folder)
    paths = write_photos(folder / "day", 40)
    paths[0].rename(folder / "day" / "<script>window.hurt=1<&.jpg")
    for path in write_photos(folder / "night", 30, 100):
        with Image.open(path) as image:
            dark = ImageEnhance.Brightness(image).enhance(0.5)
        dark.save(path, quality=90)
    with tarfile.open(folder / "night.tar", "w") as tar:
        tar.add(folder / "night", "night")
    catalogue = Catalogue(str(folder / "catalogue"))
    requests = [
        Request("day", str(folder / "day"), **network.options),  # type: ignore[arg-type]
        Request("night", str(folder / "night.tar"), **network.options),  # type: ignore[arg-type]
        Request("bare", str(folder / "day"), exemplars=0, **network.options),  # type: ignore[arg-type]
    ]
    build_datasets(catalogue, requests, InProcess(), Resources(workers=0, threads=2))
    return catalogue


@pytest.fixture(scope="module")
def page(built: Catalogue) -> bytes:
    return render_explanation(gather_explanation(built, explain(built, "day", "night")))


@pytest.fixture
def copy(built: Catalogue, tmp_path: Path) -> tuple[Catalogue, Path]:
    """Copies the catalogue with its images, so that a test may damage them."""
    source = tmp_path / "day"
    shutil.copytree(Path(storage.local_path(built.root)).parent / "day", source)
    catalogue = Catalogue(str(tmp_path / "catalogue"))
    network = tiny.install(tmp_path)
    requests = [
        Request(name, str(source), limit=limit, **network.options)  # type: ignore[arg-type]
        for name, limit in (("all", None), ("some", 20))
    ]
    build_datasets(catalogue, requests, InProcess(), Resources(workers=0, threads=2))
    return catalogue, source


def shown_by(data: Any) -> set[int]:
    return {
        picture
        for neuron in data["neurons"]
        for images in neuron["images"]
        for picture, _ in images or ()
    }


def test_the_page_has_the_numbers_of_the_explanation(built: Catalogue, page: bytes) -> None:
    found, data = explain(built, "day", "night"), data_of(page)
    assert data["layers"] == found.layers.to_pylist()
    assert data["names"] == ["day", "night"]
    rows = found.neurons.to_pylist()
    assert len(data["neurons"]) == len(rows) == sum(tiny.WIDTHS)
    for neuron, row, shown, reactions in zip(
        data["neurons"], rows, found.shown, found.reactions, strict=True
    ):
        assert {name: neuron[name] for name in row} == row
        assert neuron["histogram"]["a"] == list(shown.a)
        assert neuron["histogram"]["b"] == list(shown.b)
        for images, side in zip(neuron["images"], reactions, strict=True):
            named = [(data["pictures"][at]["place"], reaction) for at, reaction in images]
            assert side is not None
            assert named == [
                (
                    f"{storage.readable(of.uri)}::{of.member}"
                    if of.member
                    else storage.readable(of.uri),
                    of.reaction,
                )
                for of in side[:MOST_IMAGES]
            ]
            assert len(named) == MOST_IMAGES


def test_each_image_is_embedded_once_and_is_its_thumbnail(built: Catalogue, page: bytes) -> None:
    data = data_of(page)
    folder = Path(storage.local_path(built.root)).parent
    assert shown_by(data) == set(range(len(data["pictures"])))
    for picture in data["pictures"]:
        archive, _, member = picture["place"].partition("::")
        path = folder / member if member else Path(archive)
        assert picture["why"] == ""
        assert picture["image"] == thumbnail(path.read_bytes())
        assert picture["name"] == path.name
        assert page.count(picture["image"].partition(",")[2].encode()) == 1 + sum(
            sample["image"] == picture["image"]
            for dataset in data["datasets"]
            for sample in dataset["samples"]
        )
    assert any("::night/" in picture["place"] for picture in data["pictures"])
    assert len(page) < 500_000
    assert page.count(b"<script") == 2  # the hostile name is data


def test_images_that_are_no_longer_readable_are_noted_with_the_reason(
    copy: tuple[Catalogue, Path],
) -> None:
    catalogue, source = copy
    names = sorted(path.name for path in source.iterdir())
    gone, changed, empty, hidden = names[:4]
    (source / gone).unlink()
    (source / changed).write_bytes(b"no image any more")
    times = (source / empty).stat()
    (source / empty).write_bytes(b"\0" * times.st_size)  # a change that size and time do not show
    os.utime(source / empty, ns=(times.st_atime_ns, times.st_mtime_ns))
    (source / hidden).unlink()
    (source / hidden).mkdir()
    data = data_of(
        render_explanation(
            gather_explanation(catalogue, explain(catalogue, "all", "some"), samples=0)
        )
    )
    pictures = {picture["name"]: picture for picture in data["pictures"]}
    told = {
        gone: "does not exist",
        changed: "changed",
        empty: "not_an_image",
        hidden: "is a folder",
    }
    assert set(told) & set(pictures)
    for name, picture in pictures.items():
        if name in told:
            assert picture["image"] == ""
            assert told[name] in picture["why"], picture
        else:
            assert picture["why"] == ""
            assert picture["image"].startswith("data:image/webp;base64,")
    shutil.rmtree(source)
    data = data_of(
        render_explanation(gather_explanation(catalogue, explain(catalogue, "all", "some")))
    )
    assert all(picture["why"] and not picture["image"] for picture in data["pictures"])
    assert shown_by(data) == set(range(len(data["pictures"])))


@pytest.mark.parametrize("torn", ["cut", "no table"])
def test_a_torn_manifest_is_a_note_on_the_page(copy: tuple[Catalogue, Path], torn: str) -> None:
    catalogue, _ = copy
    version = catalogue.find("all")
    uri = catalogue.uri("manifests", version.spec, "all", version.manifest)
    path = Path(storage.local_path(uri))
    path.write_bytes(path.read_bytes()[:-20] if torn == "cut" else b"hello")
    data = data_of(
        render_explanation(gather_explanation(catalogue, explain(catalogue, "all", "some")))
    )
    (note,) = data["datasets"][0]["notes"]
    assert note.startswith(f"no sample images: {uri}: torn, or not a Parquet file")
    assert data["datasets"][1]["samples"]
    assert data_of(render_matrix_page(gather_matrix_page(catalogue, [compare(catalogue)])))


def test_control_characters_in_names_are_escaped_on_the_page(
    built: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = explain(built, "day", "night")
    named = [(Reaction("s3://b/x.tar", "m\x1b[2J", 1.0),), None]
    why = gather_explanation(
        built, replace(found, reactions=(named, *found.reactions[1:])), samples=0
    )
    assert why.pictures["s3://b/x.tar", "m\x1b[2J"].place == "s3://b/x.tar::m\\x1b[2J"


def test_each_reader_asks_a_store_that_does_not_answer_only_once(
    built: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []

    def away(entry: object, rule: object) -> str:
        asked.append(entry)
        raise TransientError("the store did not answer")

    monkeypatch.setattr(thumbnails, "small_pixels", away)
    found = explain(built, "day", "night")
    why = gather_explanation(built, found, samples=0)
    assert 1 <= len(asked) <= explained.IMAGE_READERS
    assert all("the store did not answer" in picture.why for picture in why.pictures.values())
    monkeypatch.setattr(explained, "SAMPLING_SECONDS", 0.0)
    why = gather_explanation(built, found, samples=0)
    assert all("reading took too long" in picture.why for picture in why.pictures.values())

    def denied(*_: object) -> None:
        raise StorageError("access denied")

    monkeypatch.setattr(explained, "SAMPLING_SECONDS", 60.0)
    monkeypatch.setattr(explained, "find_entries", denied)
    why = gather_explanation(built, found, samples=0)
    assert {picture.why for picture in why.pictures.values()} == {
        "the manifest cannot be read: access denied"
    }


def why_of(found: Explanation, pictures: dict[tuple[str, str], ShownImage], text: str = "") -> Why:
    panel = Panel(text, ((text, text),), ((text, 1),), (text,), (), (text,))
    return Why(found, 8, [panel] * 2, pictures, text, (text,), ((text, text),))


def hand_made(neurons: int, images: int, text: str = "s3://b/é") -> Explanation:
    """Makes an explanation in which each neuron has images of its own, with the text as names."""
    rows = [
        {"layer": text, "neuron": k, "emd": 2.0, "q": 0.01 if k else 0.5, "weight": 1.0}
        for k in range(neurons)
    ]
    table = pa.Table.from_pylist(rows, schema=explain_schema("neurons"))
    layers = pa.Table.from_pylist(
        [{"layer": text, "neurons": neurons, "differing": 1, "emd": 2.0, "share": 1.0}],
        schema=explain_schema("layers"),
    )
    reactions = tuple(
        (
            tuple(Reaction(f"{text}-{k}-{i}.jpg", "", 1.0) for i in range(images)),
            (Reaction(f"{text}-all.jpg", text, 2.0),),
        )
        for k in range(neurons)
    )
    shown = (Overlay(0.0, 1.0, (999, 0), (0, 999)),) * neurons
    return Explanation({"a": None, text: None}, text, layers, table, shown, reactions)  # type: ignore[dict-item]


def explain_schema(name: str) -> pa.Schema:
    from pipeline.explaining.explanation import LAYERS, NEURONS

    return {"layers": LAYERS, "neurons": NEURONS}[name]


def keys_of(found: Explanation) -> list[tuple[str, str]]:
    sides = [side for sides in found.reactions for side in sides]
    return list(dict.fromkeys((of.uri, of.member) for side in sides for of in side or ()))


def test_the_file_stays_small_and_names_the_images_that_it_leaves_out() -> None:
    found = hand_made(explained.MOST_NEURONS + 50, MOST_IMAGES, "é" * 200)
    image = f"data:image/webp;base64,{'A' * 20_000}"
    pictures = {
        key: ShownImage("name", explained._cut(key[0] * 9), image) for key in keys_of(found)
    }
    written = render_explanation(why_of(found, pictures))
    assert 9_000_000 < len(written) < 10_000_000
    data = data_of(written)
    assert len(data["neurons"]) == explained.MOST_NEURONS
    left = [bool(picture["why"]) for picture in data["pictures"]]
    assert left == sorted(left)  # the images of the first neurons are there
    assert any(left)
    assert not all(left)
    said = {picture["why"] for picture in data["pictures"] if not picture["image"]}
    assert said == {"left out for the size of this page"}


def test_a_dataset_without_exemplars_is_noted(built: Catalogue) -> None:
    data = data_of(
        render_explanation(gather_explanation(built, explain(built, "bare", "night"), samples=0))
    )
    lacking = "No images are named for bare, which keeps none: build it with `exemplars=8`."
    assert lacking in data["notes"]
    assert all(neuron["images"][0] is None for neuron in data["neurons"])
    assert all(len(neuron["images"][1]) == MOST_IMAGES for neuron in data["neurons"])


def test_neurons_beyond_the_limit_of_a_page_are_noted(
    built: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(explained, "MOST_NEURONS", 2)
    why = gather_explanation(built, explain(built, "day", "night"), samples=0)
    data = data_of(render_explanation(why))
    assert len(data["neurons"]) == 2
    assert shown_by(data) == set(range(len(data["pictures"])))  # no images of other neurons
    assert any("the first 2 of 7 neurons" in note for note in data["notes"])


def test_the_command_writes_it_through_a_lens_too(built: Catalogue, tmp_path: Path) -> None:
    out = tmp_path / "why.html"
    words = ["explain", "day", "night", "-c", built.root, "--html", str(out)]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert f"written to {out}" in done.output
    assert data_of(out.read_bytes())["title"] == "Why day and night differ"
    lens = Lens.from_rows(
        "few", built.spec(built.find("day").spec), [("a", 1, 2.0), ("a", 3, -1.0)]
    )
    (tmp_path / "few.parquet").write_bytes(lens.encode())
    done = CliRunner().invoke(app, [*words, "--lens", str(tmp_path / "few.parquet"), "--json"])
    assert done.exit_code == 0, done.output
    data = data_of(out.read_bytes())
    assert data["title"] == "Why day and night differ through lens few"
    assert sorted(neuron["weight"] for neuron in data["neurons"]) == [-1.0, 2.0]
    assert {row["layer"]: row["neurons"] for row in data["layers"]} == {"all": 2, "a": 2, "b": 0}
    done = CliRunner().invoke(app, [*words[:-1], "why.txt"])
    assert done.exit_code == 2
    assert "'why.txt' must end in .html" in done.output


def test_saving_a_page_returns_its_size(page: bytes, tmp_path: Path) -> None:
    out = tmp_path / "why.html"
    assert save_page(page, str(out)) == out.stat().st_size


# In a browser.


@browser.needed
def test_the_keyboard_walks_the_images_and_names_them(
    reader: Reader, page: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "why.html"
    path.write_bytes(page)
    reader.open(path)
    data = data_of(page)
    assert reader.text("title") == "Why day and night differ"
    assert reader.text("summary").startswith(data["summary"][:10])
    (whole,) = [row for row in data["layers"] if row["layer"] == "all"]
    assert whole["q"] < data["rate"]
    assert "day and night differ at a false discovery rate of 5%." in reader.text("verdict")
    low, high = (f"{whole[of]:#.4g}" for of in ("low", "high"))
    assert f"[{low}, {high}]" in reader.text("verdict")
    count = "return document.querySelectorAll(arguments[0]).length"
    neurons = len(data["neurons"])
    assert reader.run(count, "#cards svg path.first") == neurons
    assert reader.run(count, "#cards svg path.second") == neurons
    assert reader.run(count, ".strip") == 2 * neurons
    assert reader.run(count, ".strip button[tabindex='0']") == 2 * neurons  # one tab stop each
    loaded = "return [...document.querySelectorAll('.strip img')].map((of) => of.naturalWidth)"
    reader.wait(lambda: set(reader.run(loaded)) == {thumbnails.SIDE})
    reader.find("which").send_keys(Keys.TAB)
    press = reader.driver.switch_to.active_element.send_keys
    focused = "return Number(document.activeElement.dataset.picture)"
    images = [picture for picture, _ in data["neurons"][0]["images"][0]]
    assert reader.run(focused) == images[0]
    for key, expected in (
        (Keys.ARROW_LEFT, 0),
        (Keys.ARROW_RIGHT, 1),
        (Keys.ARROW_RIGHT, 2),
        (Keys.END, MOST_IMAGES - 1),
        (Keys.ARROW_RIGHT, MOST_IMAGES - 1),
        (Keys.ARROW_LEFT, MOST_IMAGES - 2),
        (Keys.HOME, 0),
    ):
        reader.driver.switch_to.active_element.send_keys(key)
        assert reader.run(focused) == images[expected], key
    press = reader.driver.switch_to.active_element.send_keys
    press(Keys.ENTER)
    assert data["pictures"][images[0]]["place"] in reader.text("selected")
    at = [
        f"{neuron['layer']}[{neuron['neuron']}]"
        for neuron in data["neurons"]
        if any(images[0] == one for side in neuron["images"] for one, _ in side)
    ]
    assert reader.text("selected").endswith(f"Among the first images of {', '.join(at)}.")
    assert reader.run(count, "[aria-pressed='true']") == len(at)
    assert reader.find("selected").is_displayed()
    press(Keys.ENTER)
    assert not reader.find("selected").is_displayed()
    reader.driver.switch_to.active_element.send_keys(Keys.TAB)
    second = [picture for picture, _ in data["neurons"][0]["images"][1]]
    assert reader.run(focused) == second[0]
    reader.assert_no_request_and_no_message(path)


@browser.needed
def test_layers_and_neurons_are_chosen_and_told(
    reader: Reader, page: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "why.html"
    path.write_bytes(page)
    reader.open(path)
    data = data_of(page)
    cards = "return [...document.querySelectorAll('#cards h3')].map((of) => of.textContent)"
    named = [
        f"{n}. {row['layer']}, neuron {row['neuron']}" for n, row in enumerate(data["neurons"], 1)
    ]
    assert reader.run(cards) == named
    reader.choose("layer", "b")
    assert reader.run(cards) == [name for name in named if ". b, " in name]
    assert reader.text("shown") == "3 of the first 7."
    reader.choose("layer", "all layers")
    reader.choose("which", "those that differ")
    different = [row["q"] < data["rate"] for row in data["neurons"]]
    assert len(set(different)) == 2
    assert reader.run(cards) == [n for n, yes in zip(named, different, strict=True) if yes]
    reader.choose("which", "all of the first")
    said = "return [...document.querySelectorAll('#cards .told')].map((of) => of.textContent)"
    for text, yes, row in zip(reader.run(said), different, data["neurons"], strict=True):
        assert ("differs" if yes else "not told apart") in text
        assert f"{row['emd_corrected']:#.4g} bins" in text or row["emd_corrected"] == 0
    reader.run("document.getElementById('numbers').open = true")
    table = "return [...document.querySelectorAll('#numbers tbody tr')].map((of) => of.innerText)"
    lines = reader.wait(lambda: reader.run(table))
    for line, row in zip(lines, data["layers"], strict=True):
        assert f"{row['differing']} of {row['neurons']}" in line
        assert line.startswith("all neurons" if row["layer"] == "all" else row["layer"])


@browser.needed
def test_hostile_names_are_shown_and_never_run_at_any_width(reader: Reader, tmp_path: Path) -> None:
    found = hand_made(3, 4, HOSTILE)
    broken = hand_made(1, 1, HOSTILE).reactions[0]
    found = replace(found, reactions=(*found.reactions[:2], (None, broken[1])))
    pictures = {
        key: ShownImage(HOSTILE, HOSTILE * 3, PIXEL if at % 2 else "", "" if at % 2 else HOSTILE)
        for at, key in enumerate(keys_of(found))
    }
    path = tmp_path / "why.html"
    path.write_bytes(render_explanation(why_of(found, pictures, HOSTILE)))
    backgrounds = set()
    for scheme in ("light", "dark"):
        for width in (400, 1600):
            reader.set_window(width, scheme=scheme)
            reader.open(path)
            reader.run(
                "for (const closed of document.querySelectorAll('details')) closed.open = true"
            )
            reader.run("document.querySelector('.strip button').click()")
            for shown in ("title", "about", "notes", "panels", "cards", "selected", "layers"):
                assert HOSTILE in reader.text(shown) or shown == "layers", shown
            wide = "return document.documentElement.scrollWidth <= innerWidth"
            reader.wait(partial(reader.run, wide))
        backgrounds.add(reader.run("return getComputedStyle(document.body).backgroundColor"))
    assert len(backgrounds) == 2
    assert "no images are kept of this neuron" in reader.text("cards")
    assert "not shown" in reader.text("cards")
    assert reader.run("return window.hurt === undefined")
    assert reader.run("return document.querySelectorAll('script').length") == 2
    assert reader.run("return document.querySelectorAll('img:not(.strip img)').length") == 0
    reader.assert_no_request_and_no_message(path)
