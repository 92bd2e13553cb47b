"""Tests which images are said to repeat, against comparing each with each."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

import pipeline
from jobs.app import app
from pipeline import explaining, storage
from pipeline.building import Request, build_datasets
from pipeline.catalogue import Catalogue
from pipeline.engine import InProcess
from pipeline.errors import CorruptFile, NotFound, SourceError
from pipeline.explaining import ImageGroups, find_repeats, near_looks, repeats
from pipeline.explaining.near_looks import NEAR_BITS, bits_set, near_groups
from pipeline.reporting import repeat_words
from pipeline.spec import IMAGE_HASHES, Resources
from tests.support import tiny_network as tiny
from tests.support.builders import photo


def by_brute_force(looks: list[int]) -> list[int]:
    """Returns the group of each, named by the first of its members."""
    groups = list(range(len(looks)))
    for i, one in enumerate(looks):
        for j, other in enumerate(looks[:i]):
            if (one ^ other).bit_count() <= NEAR_BITS and groups[i] != groups[j]:
                low, high = sorted((groups[i], groups[j]))
                groups = [low if group == high else group for group in groups]
    return groups


def as_partition(groups: Any) -> list[int]:
    firsts: dict[int, int] = {}
    return [firsts.setdefault(int(group), at) for at, group in enumerate(groups)]


@given(data=st.data(), most=st.sampled_from([1, near_looks.MOST_LINKS]))
def test_all_near_looks_are_found(data: st.DataObject, most: int) -> None:
    """Some looks are made of others, by as many changed bits as may differ, and one more."""
    looks = data.draw(st.lists(st.integers(0, 2**64 - 1), min_size=0, max_size=6))
    changes = st.sets(st.integers(0, 63), min_size=1, max_size=NEAR_BITS + 1)
    for _ in range(data.draw(st.integers(0, 12)) if looks else 0):
        bits = data.draw(changes)
        looks.append(data.draw(st.sampled_from(looks)) ^ sum(1 << bit for bit in bits))
    looks = list(dict.fromkeys(looks))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(near_looks, "MOST_LINKS", most)
        found = near_groups(np.array(looks, np.uint64))
    assert found is not None
    assert as_partition(found) == as_partition(by_brute_force(looks))


@given(st.lists(st.integers(0, 2**64 - 1)))
def test_bits_are_counted(values: list[int]) -> None:
    found = bits_set(np.array(values, np.uint64)).tolist()
    assert found == [value.bit_count() for value in values]


def test_any_few_bits_may_differ() -> None:
    """Also where all of them are in bands of their own."""
    for start in range(0, 64, 3):
        bits = sum(1 << (start + 16 * step) % 64 for step in range(NEAR_BITS))
        assert len(set(near_partition(np.array([0, bits], np.uint64)))) == 1
        more = bits | 1 << (start + 7) % 64
        assert len(set(near_partition(np.array([0, more], np.uint64)))) == 2


def near_partition(looks: np.ndarray) -> list[int]:
    found = near_groups(looks)
    assert found is not None
    return as_partition(found)


@given(data=st.data())
def test_all_near_looks_are_found_where_most_bits_are_the_same(data: st.DataObject) -> None:
    """With few compared at a time, bands are dealt out several times."""
    free = data.draw(st.integers(6, 20))
    start = data.draw(st.integers(0, 64 - free))
    looks = data.draw(st.sets(st.integers(0, 2**free - 1), min_size=2, max_size=60))
    values = [look << start for look in looks]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(near_looks, "LARGE_BUCKET", 32)
        patch.setattr(near_looks, "MOST_LINKS", data.draw(st.sampled_from([1, 1 << 22])))
        assert near_partition(np.array(values, np.uint64)) == as_partition(by_brute_force(values))


def test_looks_that_have_half_of_their_bits_in_common_are_not_all_compared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compared = []

    def counted(values: np.ndarray) -> np.ndarray:
        compared.append(len(values))
        return bits_set(values)

    monkeypatch.setattr(near_looks, "bits_set", counted)
    random = np.random.default_rng(1)
    looks = np.unique(random.integers(0, 2**32, 20_000, np.uint64)) << np.uint64(32)
    found = near_groups(looks)
    assert found is not None
    assert sum(compared) < 200 * len(looks)
    some = np.arange(0, len(looks), 400)  # against each with each
    for at in some:
        near = bits_set(looks ^ looks[at]) <= NEAR_BITS
        assert (found[near] == found[at]).all()
    assert near_groups(looks, limit=100_000) is None


# A dataset.


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    """Builds `photos` of copies, of images that look alike, of plain ones, and of a bad one.

    `bare` keeps no hashes.
    """
    home = tmp_path_factory.mktemp("repeats")
    folder = home / "photos"
    folder.mkdir()
    for seed in range(4):
        photo(seed, 160, 120).save(folder / f"{seed}.png")
    for name in ("0-copy", "0-third", "1-copy"):
        shutil.copy(folder / f"{name[0]}.png", folder / f"{name}.png")
    photo(2, 160, 120).resize((80, 60)).save(folder / "2-small.png")
    photo(0, 160, 120).save(folder / "0-again.jpg", quality=70)
    for name, level in (("black", 0), ("dark", 6), ("grey", 90)):
        Image.new("RGB", (20, 20), (level, level, level)).save(folder / f"{name}.png")
    ramp = np.repeat(np.linspace(0, 255, 64).astype(np.uint8)[None, :, None], 3, axis=2)
    for rows in (40, 60):
        Image.fromarray(np.repeat(ramp, rows, axis=0)).save(folder / f"ramp-{rows}.png")
    (folder / "bad.png").write_bytes(b"no image")
    options = {"max_failures": 9, "shard_images": 5, "exemplars": 0, **tiny.install(home).options}
    requests = [
        Request("photos", str(folder), **options),  # type: ignore[arg-type]
        Request("bare", str(folder), image_hashes=False, **options),  # type: ignore[arg-type]
    ]
    catalogue = Catalogue(str(home / "dnas"))
    build_datasets(catalogue, requests, InProcess(), Resources(workers=0, threads=2))
    return catalogue


def names_of(found: ImageGroups) -> list[set[str]]:
    return [{Path(image.uri).name for image in group.images} for group in found.listed]


def test_a_dataset_names_its_copies_and_look_alikes(place: Catalogue) -> None:
    found = find_repeats(place, "photos")
    assert found.images == 14
    assert (found.copies.groups, found.copies.images, found.copies.spare) == (2, 5, 3)
    assert names_of(found.copies) == [
        {"0.png", "0-copy.png", "0-third.png"},
        {"1.png", "1-copy.png"},
    ]
    assert found.alike is not None
    assert (found.alike.groups, found.alike.images) == (2, 6)
    assert names_of(found.alike) == [
        {"0.png", "0-copy.png", "0-third.png", "0-again.jpg"},
        {"2.png", "2-small.png"},
    ]
    single, black = (
        {Path(image.uri).name for image in of.images} for of in (found.single_colour, found.black)
    )
    assert single == {"black.png", "dark.png", "grey.png"}
    assert black == {"black.png", "dark.png"}
    assert found.plain == 5, "three of one colour and two gradients"
    image = found.copies.listed[0].images[0]
    assert np.array_equal(np.asarray(image.image()), np.asarray(photo(0, 160, 120)))
    assert pipeline.find_repeats(place.root, "photos") == found


def test_only_so_many_groups_and_images_are_listed(
    place: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repeats, "NAMED_IN_A_GROUP", 2)
    found = find_repeats(place, "photos", listed=1)
    (group,) = found.copies.listed
    assert (found.copies.groups, group.size, len(group.images)) == (2, 3, 2)
    none = find_repeats(place, "photos", listed=0)
    assert (none.copies.groups, none.copies.listed, none.black.images) == (2, (), ())


def test_show_lists_what_repeats(place: Catalogue) -> None:
    def shown(*words: str) -> str:
        result = CliRunner().invoke(app, ["show", *words, "-c", place.root])
        assert result.exit_code == 0, result.output
        return result.stdout

    text = shown("photos", "--repeats", "1")
    assert "  copies     5 of 14 images are in 2 groups of equal files: 3 are spare\n" in text
    assert "    3 x " in text
    assert "    … and 1 more group\n" in text
    assert "  look-alike 6 of 14 images are in 2 groups that look the same\n" in text
    assert "  plain      5 of 14 images are too plain to say what looks alike\n" in text
    assert "  one colour 3 of 14 images\n" in text
    assert "  black      2 of 14 images\n" in text
    told = json.loads(shown("photos", "--json"))["repeats"]
    assert (told["copies"]["groups"], told["copies"]["images"]) == (2, 5)
    assert [group["size"] for group in told["copies"]["listed"]] == [3, 2]
    assert {Path(image["uri"]).name for image in told["black"]["images"]} == {
        "black.png",
        "dark.png",
    }
    assert "copies" not in shown("photos", "--repeats", "0")
    assert json.loads(shown("photos", "--json", "--repeats", "0"))["repeats"] is None
    text = shown("bare")
    assert "its build has kept no hashes of them. Build it with --image-hashes, which" in text
    assert json.loads(shown("bare", "--json"))["repeats"] is None
    with pytest.raises(NotFound, match="bare has no image hashes: build it with `image_hashes="):
        find_repeats(place, "bare")


def test_show_says_what_it_has_not_looked_for(
    place: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repeat_words, "UNASKED_IMAGES", 13)
    result = CliRunner().invoke(app, ["show", "photos", "-c", place.root])
    told = "note: it was not looked for images that it has more than once: that takes about 2.8 kB"
    assert f"{told} of memory. `vdna show --repeats 5` does it" in result.stdout
    monkeypatch.setattr(repeat_words, "UNASKED_IMAGES", 14)
    monkeypatch.setattr(explaining, "QUICK_SEARCH", 10)
    result = CliRunner().invoke(app, ["show", "photos", "-c", place.root])
    assert "copies     5 of 14 images are in 2 groups" in result.stdout
    assert "look-alike not looked for: that takes long here; `vdna show --repeats 5`" in (
        result.stdout
    )
    result = CliRunner().invoke(app, ["show", "photos", "--repeats", "5", "-c", place.root])
    assert "look-alike 6 of 14 images" in result.stdout
    found = find_repeats(place, "photos", limit=10)
    assert (found.alike, found.to_json()["alike"]) == (None, None)
    assert "in groups that look alike not known" in repr(found)


@pytest.mark.parametrize("kind", [IMAGE_HASHES, "manifests", "entries", "dna"])
def test_show_shows_what_is_left_of_a_version_that_has_lost_files(
    place: Catalogue, kind: str
) -> None:
    version = place.find("photos")
    uris = [place.uri(kind, version.spec, "photos", version.digest_in(kind))]
    if kind == "entries":
        manifest = place.manifest("photos", version)
        uris = [manifest.entries.uri(name) for name in manifest.files]
    sound = {uri: storage.read(uri) for uri in uris}

    def shown(*words: str) -> str:
        result = CliRunner().invoke(app, ["show", "photos", *words, "-c", place.root])
        assert result.exit_code == 0, result.output
        return result.stdout

    try:
        for uri, data in sound.items():
            storage.replace(uri, data[:-9])
        told = "note: it is not known which images it has more than once: "
        assert (told in shown()) == (kind != "dna")
        storage.delete_all(list(uris))
        text, gone = shown(), kind in ("dna", "manifests")
        assert "14 images, 1 failed" in text
        assert ("vdna show photos --outliers 10" in text) == (not gone)
        assert ("note: its files are gone: `vdna gc` has removed them, or" in text) == gone
        if kind == "dna":
            return
        assert told in text
        assert json.loads(shown("--json"))["repeats"] is None
        with pytest.raises((CorruptFile, SourceError)):
            find_repeats(place, "photos")
    finally:
        for uri, data in sound.items():
            storage.replace(uri, data)
