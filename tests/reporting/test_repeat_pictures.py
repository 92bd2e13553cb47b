"""Tests what the page of a dataset says and shows of its repeated and odd images."""

from __future__ import annotations

import re
import shutil
from html import unescape
from pathlib import Path
from time import monotonic

import pytest
from PIL import Image

from pipeline import storage
from pipeline.building import Request, build_datasets
from pipeline.catalogue import Catalogue, FarImage, Outliers, keep_outliers
from pipeline.comparing import Matrix, compare
from pipeline.engine import InProcess
from pipeline.errors import CorruptFile, SourceError
from pipeline.explaining import NamedImage, find_repeats
from pipeline.reporting import outlier_lines, repeat_lines, unknown_repeats
from pipeline.reporting.html import repeat_pictures
from pipeline.reporting.html.dataset_page import gather_dataset, render_dataset
from pipeline.reporting.html.links import Addresses
from pipeline.reporting.html.page_data import Sample
from pipeline.reporting.html.repeat_pictures import ShownRepeats, gather_repeats
from pipeline.reporting.repeat_words import RepeatGroup, RepeatKind
from pipeline.spec import Resources
from tests.reporting.test_browser import PIXEL
from tests.support import tiny_network as tiny
from tests.support.builders import photo

OWN_PAGES = ["0.html", "1.html"]


def repeats_of(text: str) -> ShownRepeats:
    """Returns what a page shows of repeated images, with the same text and name everywhere."""
    shown = tuple(NamedImage(f"{text}{k}", "") for k in range(3))
    kinds = [
        RepeatKind("look-alike", text, (RepeatGroup(text, shown),) * 2, text),
        RepeatKind("plain", text),
    ]
    return ShownRepeats(kinds, {(of.uri, ""): Sample(text, PIXEL) for of in shown[:2]}, (text,))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    """Builds `photos` of copies, look-alikes and black ones, and `bare` without hashes."""
    home = tmp_path_factory.mktemp("pictures")
    folder = home / "photos"
    folder.mkdir()
    for seed in range(4):
        photo(seed).save(folder / f"{seed}.png")
    for name in ("0-copy", "0-third", "1-copy"):
        shutil.copy(folder / f"{name[0]}.png", folder / f"{name}.png")
    photo(2).resize((80, 60)).save(folder / "2-small.png")
    for level in (0, 6, 90):
        Image.new("RGB", (20, 20), (level, level, level)).save(folder / f"grey-{level}.png")
    options = {"exemplars": 0, **tiny.install(home).options}
    requests = [
        Request("bare", str(folder), image_hashes=False, **options),  # type: ignore[arg-type]
        Request("photos", str(folder), **options),  # type: ignore[arg-type]
    ]
    catalogue = Catalogue(str(home / "dnas"))
    build_datasets(catalogue, requests, InProcess(), Resources(workers=0, threads=2))
    return catalogue


@pytest.fixture(scope="module")
def matrix(place: Catalogue) -> Matrix:
    return compare(place)


def gathered(place: Catalogue, most: int = 20) -> ShownRepeats:
    version, until = place.find("photos"), monotonic() + 60
    found = gather_repeats(place, "photos", version, place.at(), most, until)
    assert found is not None
    return found


def page_text(place: Catalogue, matrix: Matrix, name: str, samples: int = 0) -> str:
    page = gather_dataset(place, name, matrix, place.at(), samples=samples)
    where = Addresses("../index.html", OWN_PAGES, lambda i, j: "", [])
    return render_dataset(page, where).decode()


def section_of(text: str) -> str:
    found = re.search(r'<section aria-labelledby="repeats-title">.*?</section>', text, re.DOTALL)
    return found[0] if found else ""


def test_the_page_says_the_lines_of_the_command_and_shows_what_they_name(
    place: Catalogue, matrix: Matrix
) -> None:
    lines = [*repeat_lines(find_repeats(place, "photos")), *outlier_lines(None, "photos")]
    section = section_of(page_text(place, matrix, "photos", samples=60))
    said = unescape(re.sub(r"(?:<[^>]*>|\s)+", " ", section))
    for line in lines:
        assert line[len("  ") if line.startswith(" ") else len("look-alike ") :] in said
    _, *groups = section.split('<li><span class="quiet">')
    assert len(groups) == sum(line.startswith("  ") for line in lines) == 5
    for group in groups:
        text, shown = group.split("</span>", 1)
        named = [Path(name).name for name in re.findall(r"[^ ,]+\.png", unescape(text))]
        pictures = re.findall(r'<img src="data:image/webp[^>]* title="([^"]*)"', shown)
        assert pictures == (named[:1] if "0-copy" in text or "1-copy" in text else named)


@pytest.mark.parametrize("name", ["photos", "bare"])
def test_the_page_shows_the_outliers_that_are_kept_of_its_version(
    place: Catalogue, matrix: Matrix, name: str
) -> None:
    """Also of a dataset that keeps no hashes."""
    version = place.find(name)
    shards = place.manifest(name, version).shards
    images = tuple(
        FarImage(of.uri, "", 11 - at, 2.5 - at, 21.75 - at)
        for at, of in enumerate([of for shard in shards for of in shard.members][:6])
    )
    other = "bare" if name == "photos" else "photos"
    background = {"before-it-was-renamed": version.dna, "zoo": "0" * 32, other: "1" * 32}
    kept = Outliers(version.spec, version.dna, 11, 0, 0, 9.5, background, images)
    keep_outliers(place, kept, 0)
    try:
        section = section_of(page_text(place, matrix, name, samples=60))
        assert "the 5 farthest of" not in page_text(place, matrix, other)
        storage.replace(place.outliers_uri(version.spec, version.dna), b"torn")
        assert "Outliers cannot be shown: " in page_text(place, matrix, name)
    finally:
        storage.delete(place.outliers_uri(version.spec, version.dna))
    said = unescape(re.sub(r"(?:<[^>]*>|\s)+", " ", section))
    told = f"the 5 farthest of 11 images; half of all are at most 9.50 bins from {name}"
    assert f"outliers: {told}" in said
    assert (
        "less three quarters of the distance to bare, photos and zoo, taken together. The images "
        f"were ranked against another version of {other}, and against zoo, which is gone; "
        f"`vdna rank --to {name}` ranks them anew"
    ) in said
    _, shown = section.split("<strong>outliers:</strong>")
    groups = shown.split('<li><span class="quiet">')[1:]
    for image, group in zip(images[:5], groups, strict=True):
        text, pictures = group.split("</span>", 1)
        assert unescape(text) == f"score {image.score:.2f}, {image.emd:.2f} bins: {image}"
        titles = re.findall(r'<img src="data:image/webp[^>]* title="([^"]*)"', pictures)
        assert titles == [Path(str(image)).name]


@pytest.mark.parametrize("most", [0, 1, 4, 20])
def test_no_more_images_are_read_than_may_be_and_each_group_has_one_before_others_have_two(
    place: Catalogue, most: int
) -> None:
    found = gathered(place, most)
    groups = [group for kind in found.kinds for group in kind.groups]
    named = {(of.uri, of.member) for group in groups for of in group.shown}
    assert found.pictures.keys() <= named
    assert len(found.pictures) == min(most, len(named))
    assert not found.notes
    if most == 4:
        firsts = {(group.shown[0].uri, "") for group in groups}
        assert found.pictures.keys() <= firsts


@pytest.mark.parametrize("samples", [2, 6, 9])
def test_pictures_of_repeats_are_among_the_images_of_the_page(
    place: Catalogue, matrix: Matrix, samples: int
) -> None:
    page = gather_dataset(place, "photos", matrix, place.at(), samples=samples)
    assert page.repeats is not None
    assert len(page.repeats.pictures) == samples // 3
    assert len(page.repeats.pictures) + len(page.panel.samples) == samples


def test_a_version_without_hashes_has_one_sentence_of_it(place: Catalogue, matrix: Matrix) -> None:
    text = page_text(place, matrix, "bare")
    assert not section_of(text)
    said = unknown_repeats(place.find("bare"))
    assert said[1:] in unescape(text)
    assert said[1:] not in unescape(page_text(place, matrix, "photos"))


def test_images_that_are_gone_leave_the_words(
    place: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = gathered(place)
    first = whole.kinds[0].groups[0].shown[0]
    path = Path(str(first))
    gone = path.rename(path.with_suffix(".gone"))
    try:
        found = gathered(place)
    finally:
        gone.rename(path)
    assert found.kinds == whole.kinds
    assert whole.pictures.keys() - found.pictures.keys() == {(first.uri, "")}
    (note,) = found.notes
    assert note.startswith(f"1 picture is missing, {path.name}: cannot be read again: ")

    monkeypatch.setattr(repeat_pictures.SmallImages, "read", lambda *_: ("", "not read: torn"))
    (note,) = gathered(place).notes
    assert re.fullmatch(r"\d+ pictures are missing, such as [\w-]+\.png: not read: torn", note)


@pytest.mark.parametrize("error", [CorruptFile("it is torn"), SourceError("it is away")])
def test_hashes_that_cannot_be_read_leave_the_reason(
    place: Catalogue, matrix: Matrix, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def failing(*_: object) -> None:
        raise error

    monkeypatch.setattr(Catalogue, "image_hashes", failing)
    section = section_of(page_text(place, matrix, "photos"))
    assert f"Repeated images cannot be found: {error}" in section


def test_a_page_neither_waits_long_nor_takes_much_memory(
    place: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = place.find("photos")
    late = gather_repeats(place, "photos", version, place.at(), 20, monotonic() - 1)
    monkeypatch.setattr(repeat_pictures, "MOST_SEARCHED", version.images - 1)
    assert late is not None
    for found, why in ((late, "reading took too long"), (gathered(place), "10 images at most")):
        assert [kind.word for kind in found.kinds] == ["outliers"]
        (note,) = found.notes
        assert note.endswith(f"{why}. `vdna show photos --repeats 5` lists them.")


def test_a_page_says_that_look_alikes_take_too_long(
    place: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repeat_pictures, "PAGE_SEARCH", 0)
    found = gathered(place)
    (alike,) = (kind for kind in found.kinds if kind.word == "look-alike")
    assert alike.text.startswith("not looked for: that takes long here")
    assert found.pictures
