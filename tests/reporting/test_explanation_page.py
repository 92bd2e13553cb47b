"""Tests the page of an explanation: its numbers, its images, and its use in a browser."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
import tarfile
from dataclasses import asdict, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
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
from pipeline.explaining import Explanation, NamedImage, NeuronGroup, Overlay, explain
from pipeline.explaining.parting import Parting
from pipeline.explaining.reactions import Reaction
from pipeline.reporting import gather_explanation, render_explanation
from pipeline.reporting.captions import caption, shares_told
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


def weights_of(catalogue: Catalogue) -> str:
    return str(Path(storage.local_path(catalogue.root)).parent / "tiny.pt")


@pytest.fixture(scope="module")
def looked(built: Catalogue) -> Explanation:
    """Looks at images again, so that each group has those that carry its difference."""
    return explain(built, "day", "night", look=40, weights=weights_of(built))


@pytest.fixture(scope="module")
def looked_page(built: Catalogue, looked: Explanation) -> bytes:
    return render_explanation(gather_explanation(built, looked))


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
        row[0]
        for sides in (*(group["images"] for group in data["groups"]), data["unlike"])
        for images in sides
        for row in images or ()
    }


def place_of(image: NamedImage) -> str:
    uri = storage.readable(image.uri)
    return f"{uri}::{image.member}" if image.member else uri


def test_the_page_has_the_numbers_of_the_explanation(built: Catalogue, page: bytes) -> None:
    found, data = explain(built, "day", "night"), data_of(page)
    assert data["layers"] == found.layers.to_pylist()
    assert data["names"] == ["day", "night"]
    rows = found.neurons.to_pylist()
    assert data["neurons"] == rows
    assert data["groups"]
    assert (data["looked"], data["unlike"]) == (None, [])
    for told, group in zip(data["groups"], found.groups, strict=True):
        row = rows[group.place]
        assert {name: told[name] for name in row} == row
        assert (told["layer"], told["neuron"]) == (group.layer, group.neuron)
        assert told["others"] == list(group.others)
        assert told["histogram"] == json.loads(json.dumps(asdict(group.histogram)))
        assert told["parting"]["value"] == group.parting.value
        assert told["caption"] == caption(group, "day", "night")
        assert not told["telling"]
        for images, side in zip(told["images"], group.exemplars, strict=True):
            named = [(data["pictures"][at]["place"], reaction) for at, reaction in images]
            assert side is not None
            assert named == [(place_of(of), of.reaction) for of in side[:MOST_IMAGES]]
            assert len(named) == MOST_IMAGES


def test_the_page_has_the_images_that_carry_a_difference(
    looked: Explanation, looked_page: bytes
) -> None:
    data = data_of(looked_page)
    assert looked.look is not None
    assert data["looked"] == list(looked.look.images) == [40, 30]
    places = [picture["place"] for picture in data["pictures"]]
    for told, group in zip(data["groups"], looked.groups, strict=True):
        assert told["telling"]
        assert group.images is not None
        for images, side in zip(told["images"], group.images, strict=True):
            assert [(places[at], above) for at, above in images] == [
                (place_of(of), of.above) for of in side
            ]
    for images, unlike in zip(data["unlike"], looked.look.unlike, strict=True):
        assert images
        assert [(places[at], *distances) for at, *distances in images] == [
            (place_of(of), of.to_other, of.to_own) for of in unlike
        ]
    assert shown_by(data) == set(range(len(places)))
    assert not any("No images are named" in note for note in data["notes"])


@given(st.floats(0, 1), st.floats(0, 1))
def test_shares_are_told_apart_with_as_few_decimals_as_it_takes(one: float, other: float) -> None:
    told = shares_told(one, other)
    for share, text in zip((one, other), told, strict=True):
        assert abs(float(text.rstrip("%")) / 100 - share) <= 0.0050001
    if abs(one - other) > 0.0002:
        assert told[0] != told[1]


def test_the_dataset_with_more_of_the_higher_values_is_named_first(looked: Explanation) -> None:
    (group, *_) = looked.groups
    group = replace(group, parting=Parting(1.8, (0.2, 0.62)))
    said = caption(group, "sunny", "rainy")
    assert said == "62% of the values of rainy lie above 1.8, and 20% of those of sunny."
    group = replace(group, parting=Parting(-12.345, (0.624, 0.6197)))
    said = caption(group, "sunny", "rainy")
    assert said == "62.4% of the values of sunny lie above -12.3, and 62.0% of those of rainy."


def test_a_description_and_a_failure_are_on_the_page_as_text(
    built: Catalogue, looked: Explanation
) -> None:
    first, *others = looked.groups
    said = replace(first, description="<b>bright</b> & https://me:secret@host/x", failure="")
    gone = [replace(group, failure="it ended with status 3") for group in others]
    found = replace(looked, groups=(said, *gone))
    page = render_explanation(gather_explanation(built, found, samples=0))
    told = [(group["description"], group["failure"]) for group in data_of(page)["groups"]]
    assert told[0][0].startswith("<b>bright</b> & ")
    assert b"secret" not in page
    assert b"<b>bright" not in page
    assert told[1:] == [("", "it ended with status 3")] * len(others)


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
    assert note.startswith(f"no sample images: {uri} has sha256")
    assert data["datasets"][1]["samples"]
    assert data_of(render_matrix_page(gather_matrix_page(catalogue, [compare(catalogue)])))


def test_control_characters_in_names_are_escaped_on_the_page(
    built: Catalogue,
) -> None:
    found = explain(built, "day", "night")
    named = (Reaction("s3://b/x.tar", "m\x1b[2J", 1.0),), None
    first = replace(found.groups[0], exemplars=named)
    why = gather_explanation(built, replace(found, groups=(first, *found.groups[1:])), samples=0)
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
    monkeypatch.setattr(Catalogue, "manifest", denied)
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
    groups = tuple(
        NeuronGroup(
            text if k % 2 else "",
            k,
            text,
            k,
            (text, f"{text}[7]") if k else (),
            Overlay(0.0, 1.0, (999, 0), (0, 999), 1.0),
            Parting(0.5, (0.0, 1.0)),
            (
                tuple(Reaction(f"{text}-{k}-{i}.jpg", "", 1.0) for i in range(images)),
                (Reaction(f"{text}-all.jpg", text, 2.0),),
            ),
        )
        for k in range(neurons)
    )
    versions: Any = {"a": None, text: None}
    return Explanation(
        versions, text, layers, table, (), ((None, None),) * neurons, {text: text}, groups
    )


def explain_schema(name: str) -> pa.Schema:
    from pipeline.explaining.explanation import LAYERS, NEURONS

    return {"layers": LAYERS, "neurons": NEURONS}[name]


def keys_of(found: Explanation) -> list[tuple[str, str]]:
    sides = [side for group in found.groups for side in group.exemplars]
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
    assert len(data["neurons"]) == len(data["groups"]) == explained.MOST_NEURONS
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
    assert data["groups"]
    assert all(group["images"][0] is None for group in data["groups"])
    assert all(len(group["images"][1]) == MOST_IMAGES for group in data["groups"])


def test_neurons_beyond_the_limit_of_a_page_are_noted(
    built: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(explained, "MOST_NEURONS", 2)
    found = explain(built, "day", "night")
    groups = len(found.groups)
    assert groups > 2
    why = gather_explanation(built, found, samples=0)
    data = data_of(render_explanation(why))
    assert len(data["neurons"]) == len(data["groups"]) == 2
    assert shown_by(data) == set(range(len(data["pictures"])))  # no images of other neurons
    assert any(f"the first 2 of {groups} neurons" in note for note in data["notes"])


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


def test_the_command_asks_another_one_for_descriptions(built: Catalogue, tmp_path: Path) -> None:
    out = tmp_path / "why.html"
    code = "import json, sys; print(len(json.load(sys.stdin)['images']['b']), 'images of b')"
    words = ["explain", "day", "night", "-c", built.root, "--weights", weights_of(built)]
    words += ["--describe", shlex.join([sys.executable, "-c", code]), "--top", "2"]
    done = CliRunner().invoke(app, [*words, "--html", str(out), "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    data = data_of(out.read_bytes())
    assert data["looked"] == [40, 30]
    assert told["unlike"]["b"]
    for row, group in zip(told["groups"], data["groups"], strict=True):
        assert row["description"] == group["description"]
        assert row["description"] == f"{len(row['images']['b'])} images of b"
        assert row["caption"] == group["caption"]
        assert {of["above"] for of in row["images"]["b"]} == {of for _, of in group["images"][1]}
    printed = CliRunner().invoke(app, words)
    assert told["groups"][0]["description"] in printed.stdout
    assert told["groups"][0]["caption"] in printed.stdout
    wrong = CliRunner().invoke(app, [*words[:-4], "--describe", "no-such-program-is-here"])
    assert wrong.exit_code == 2
    assert "--describe no-such-program-is-here names no program" in wrong.output
    none = CliRunner().invoke(app, [*words[:7], "--look", "0", "--html", str(out), "--json"])
    assert none.exit_code == 0, none.output
    assert data_of(out.read_bytes())["looked"] is None
    assert "images" not in json.loads(none.stdout)["groups"][0]


def test_saving_a_page_returns_its_size(page: bytes, tmp_path: Path) -> None:
    out = tmp_path / "why.html"
    assert save_page(page, str(out)) == out.stat().st_size


# In a browser.


def each(reader: Reader, selector: str, field: str = "textContent") -> list[str]:
    script = "return [...document.querySelectorAll(arguments[0])].map((of) => of[arguments[1]])"
    return reader.run(script, selector, field)  # type: ignore[no-any-return]


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
    low, high = (f"{whole[of]:.2f}" for of in ("low", "high"))
    assert reader.text("verdict").startswith("day and night differ by more than chance. Over all ")
    assert f"bins, with a 95% interval of {low} to {high}." in reader.text("verdict")
    assert "at a false discovery rate of 5%." in reader.text("layers-note")
    count = "return document.querySelectorAll(arguments[0]).length"
    neurons = len(data["groups"])
    assert reader.run(count, "#cards svg path.first") == neurons
    assert reader.run(count, "#cards svg path.second") == neurons
    assert reader.run(count, ".strip") == 2 * neurons
    assert reader.run(count, ".strip button[tabindex='0']") == 2 * neurons  # one tab stop each
    loaded = "return [...document.querySelectorAll('.strip img')].map((of) => of.naturalWidth)"
    reader.wait(lambda: set(reader.run(loaded)) == {thumbnails.SIDE})
    assert not reader.find("unlike-section").is_displayed()
    reader.find("which").send_keys(Keys.TAB)
    press = reader.driver.switch_to.active_element.send_keys
    focused = "return Number(document.activeElement.dataset.picture)"
    images = [picture for picture, _ in data["groups"][0]["images"][0]]
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
        f"{group['layer']}[{group['neuron']}]"
        for group in data["groups"]
        if any(images[0] == one for side in group["images"] for one, _ in side)
    ]
    assert reader.text("selected").endswith(f"Among the images of {', '.join(at)}.")
    assert reader.run(count, "[aria-pressed='true']") == len(at)
    assert reader.find("selected").is_displayed()
    press(Keys.ENTER)
    assert not reader.find("selected").is_displayed()
    reader.driver.switch_to.active_element.send_keys(Keys.TAB)
    second = [picture for picture, _ in data["groups"][0]["images"][1]]
    assert reader.run(focused) == second[0]
    reader.assert_no_request_and_no_message(path)


def staged(found: Explanation) -> Explanation:
    """Gives the layers stages, the deep one first; the last group is not told apart."""
    stages = {"a": "texture", "b": "objects"}
    rows = found.neurons.to_pylist()
    groups = []
    for place, row in enumerate(rows):
        (group, *_) = found.groups
        one = replace(
            group,
            stage=stages[row["layer"]],
            place=place,
            layer=row["layer"],
            neuron=row["neuron"],
            others=(),
        )
        groups.append(one)
        row["q"] = 0.5 if place == len(rows) - 1 else 0.001
    groups.sort(key=lambda of: of.stage)
    groups[0] = replace(groups[0], others=("b[77]", "b[78]"))
    table = pa.Table.from_pylist(rows, schema=found.neurons.schema)
    return replace(found, stages=stages, groups=tuple(groups), neurons=table)


@browser.needed
def test_stages_layers_and_neurons_are_chosen_and_told(
    reader: Reader, built: Catalogue, looked: Explanation, tmp_path: Path
) -> None:
    path = tmp_path / "why.html"
    found = staged(looked)
    path.write_bytes(render_explanation(gather_explanation(built, found, samples=0)))
    reader.open(path)
    data = data_of(path.read_bytes())
    cards, stages = (partial(each, reader, f"#cards {tag}") for tag in ("h4", "h3"))
    named = [f"{of.layer}, neuron {of.neuron}" for of in found.groups]
    told = list(named)
    told[0] += ", and 2 like it"
    (last,) = [at for at, of in enumerate(found.groups) if of.place == len(named) - 1]
    told[last] += " (not told apart)"
    assert cards() == told
    assert stages() == ["objects", "texture"]
    assert reader.text("shown") == "7 neurons are shown."
    assert [
        of.get_attribute("value") for of in reader.find("stage").find_elements("tag name", "option")
    ] == ["", "objects", "texture"]
    reader.choose("stage", "texture")
    assert stages() == ["texture"]
    assert cards() == [of for of in told if of.startswith("a,")]
    assert reader.text("shown") == "4 of 7 are shown."
    reader.choose("stage", "all stages")
    reader.choose("layer", "b")
    assert cards() == [of for of in told if of.startswith("b,")]
    reader.choose("layer", "all layers")
    reader.choose("which", "those that differ")
    assert cards() == [of for at, of in enumerate(told) if at != last]
    reader.choose("which", "all of these")
    assert "They are told apart" in reader.text("stages")
    labels = each(reader, "#cards svg", "ariaLabel")
    for label, group in zip(labels, data["groups"], strict=True):
        assert group["caption"] in label
    for text, group in zip(each(reader, "#cards article"), data["groups"], strict=True):
        assert group["caption"] in text
        assert "images with" in text
        assert all(share in text for share in group["parting"]["told"])
    reader.run(
        "for (const closed of document.querySelectorAll('#cards details')) closed.open = true"
    )
    numbers = each(reader, "#cards article", "innerText")
    assert "b[77], b[78]" in numbers[0]
    for text, row in zip(numbers, data["groups"], strict=True):
        assert f"{row['emd_corrected']:#.4g} bins" in text or row["emd_corrected"] == 0
    for table, rows in (("numbers", data["layers"]), ("first", data["neurons"])):
        reader.run(f"document.getElementById('{table}').open = true")
        body = (
            f"return [...document.querySelectorAll('#{table} tbody tr')].map((of) => of.innerText)"
        )
        lines = reader.wait(partial(reader.run, body))
        for line, row in zip(lines, rows, strict=True):
            if table == "numbers":
                assert f"{row['differing']} of {row['neurons']}" in line
                assert line.startswith("all neurons" if row["layer"] == "all" else row["layer"])
            else:
                assert line.startswith(f"{row['layer']}, neuron {row['neuron']}")


@browser.needed
def test_numbers_below_a_histogram_do_not_overlap(
    reader: Reader, page: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "why.html"
    path.write_bytes(page)
    reader.open(path)
    for value in (-0.09, -0.056, -0.05, -0.04, -0.03, 0.002, 0.05, 0.14, 0.158, 0.19):
        ends = reader.run(
            "const place = document.createElement('div'); document.body.append(place);"
            "histogram({low: -0.099, high: 0.201, a: [1, 2], b: [2, 1], peak: 0.7}, 'x', place,"
            " {wide: 330, parting: {value: arguments[0], told: ['1%', '2%']}});"
            "return [...place.querySelectorAll('.tick')].filter((tick) => tick.getBBox().y > 80)"
            ".map((tick) => [tick.getBBox().x, tick.getBBox().x + tick.getBBox().width])",
            value,
        )
        ends = sorted({tuple(end) for end in ends})
        assert len(ends) == 3 if 0 <= value <= 0.1 else len(ends) >= 2
        assert all(a[1] + 2 < b[0] for a, b in pairwise(ends)), (value, ends)


@browser.needed
def test_a_page_says_that_layers_differ_if_all_neurons_together_do_not(
    reader: Reader, built: Catalogue, looked: Explanation, tmp_path: Path
) -> None:
    path = tmp_path / "why.html"
    said = []
    for q_of_one in (0.4, 0.001):
        rows = looked.layers.to_pylist()
        for row in rows:
            row["q"] = q_of_one if row["layer"] == "a" else 0.4
        table = pa.Table.from_pylist(rows, schema=looked.layers.schema)
        found = replace(looked, layers=table)
        path.write_bytes(render_explanation(gather_explanation(built, found, samples=0)))
        reader.open(path)
        said.append(reader.text("verdict"))
        assert reader.text("title") == "day and night compared"
    assert "are not told apart: they may differ by chance." in said[0]
    assert "differ in 1 of 2 layers, and are not told apart by all neurons together." in said[1]


@browser.needed
def test_images_most_unlike_the_other_dataset_are_shown_with_both_distances(
    reader: Reader, looked_page: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "why.html"
    path.write_bytes(looked_page)
    reader.open(path)
    data = data_of(looked_page)
    assert reader.find("unlike-section").is_displayed()
    labels = each(reader, "#unlike button", "ariaLabel")
    told = [
        f"{data['pictures'][at]['name']}, {to_other:.1f} bins from {other}, {to_own:.1f} from {own}"
        for images, own, other in zip(
            data["unlike"], ("day", "night"), ("night", "day"), strict=True
        )
        for at, to_other, to_own in images
    ]
    assert labels == told
    said = "The number on an image is its distance to the other dataset, in bins"
    assert said in reader.text("unlike-note")
    reader.run("document.querySelector('#unlike button').click()")
    assert data["pictures"][data["unlike"][0][0][0]]["place"] in reader.text("selected")
    reader.assert_no_request_and_no_message(path)


@browser.needed
def test_hostile_names_are_shown_and_never_run_at_any_width(reader: Reader, tmp_path: Path) -> None:
    found = hand_made(3, 4, HOSTILE)
    *whole, last = found.groups
    last = replace(last, exemplars=(None, last.exemplars[1]), failure=HOSTILE)
    first = replace(whole[0], description=HOSTILE)
    found = replace(found, groups=(first, *whole[1:], last))
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
