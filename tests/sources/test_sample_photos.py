"""Tests the sample images: independent draws, the same every time, as their names say."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections import Counter
from dataclasses import replace
from functools import cache
from itertools import combinations
from pathlib import Path

import pytest

pytest.importorskip("skimage", reason="sample images come with the demo extra")
pytest.importorskip("sklearn", reason="sample images come with the demo extra")

from PIL import Image, ImageChops, ImageFilter, ImageStat

from pipeline.errors import StorageError, UsageError
from pipeline.sources import DATASETS, write_datasets
from pipeline.sources import sample_photos as samples

PHOTOS = [name for name in DATASETS if name.startswith("photos/")]
VARIANTS = ["photos/brighter", "photos/darker", "photos/contrast", "photos/blurred"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("samples") / "new"


@pytest.fixture(scope="module")
def written(folder: Path) -> dict[str, Path]:
    return write_datasets(folder)


@pytest.fixture(scope="module")
def files() -> dict[str, list[str]]:
    return {name: drawn(name) for name in DATASETS}


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def grey(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("L")


def named(name: str, path: Path) -> Image.Image:
    """Returns the crop that a file is named for, unchanged."""
    found = re.fullmatch(r"(.+)-s(\d+)-x(\d+)-y(\d+)", path.stem)
    assert found
    side, x, y = map(int, found.groups()[1:])
    (picture,) = (p for p in samples._RECIPES[name].pictures if p.name == found[1])
    return opened(picture).crop((x, y, x + side, y + side))


@cache
def opened(picture: samples._PackagedImage) -> Image.Image:
    return picture.open()


def drawn(name: str, seed: int = 0) -> list[str]:
    """Returns the files in the order in which they are drawn."""
    return [file for file, _ in samples._crops(name, seed)]


def mean(image: Image.Image) -> float:
    return ImageStat.Stat(image).mean[0]


def spread(image: Image.Image) -> float:
    return ImageStat.Stat(image).stddev[0]


def edges(image: Image.Image) -> float:
    return mean(ImageChops.difference(image, image.filter(ImageFilter.GaussianBlur(1))))


def pairs(written: dict[str, Path], name: str) -> list[tuple[Image.Image, Image.Image]]:
    """Yields each crop unchanged, and as it was written, in grey."""
    return [(named(name, path).convert("L"), grey(path)) for path in written[name].iterdir()]


def test_the_datasets_have_the_stated_names_and_numbers_of_images(
    folder: Path, written: dict[str, Path]
) -> None:
    assert list(written) == list(DATASETS)
    assert len(DATASETS) >= 8
    assert {"photos/original", "photos/other-crops", "textures", *VARIANTS} <= DATASETS.keys()
    assert all(text and "\n" not in text for text in DATASETS.values())
    assert written == {name: folder / name for name in DATASETS}
    counts = {name: len(list(path.iterdir())) for name, path in written.items()}
    assert counts == {name: recipe.images for name, recipe in samples._RECIPES.items()}
    assert min(counts.values()) >= 50
    assert {counts[name] for name in PHOTOS} == {120}
    assert sum(counts.values()) <= 1000


def test_every_file_is_a_small_square_image_named_for_its_crop(written: dict[str, Path]) -> None:
    kinds = set()
    for folder in written.values():
        for path in folder.iterdir():
            with Image.open(path) as image:
                image.load()
                side = int(path.stem.split("-s")[-1].split("-")[0])
                assert image.size == (side, side), path
                assert 96 <= side <= 320, path
                assert image.mode in ("L", "RGB"), path
                kinds.add((path.suffix, image.format))
    assert kinds == {(".jpg", "JPEG"), (".png", "PNG")}


def test_no_dataset_has_an_image_twice(written: dict[str, Path]) -> None:
    for name, folder in written.items():
        files = digests(folder)
        # A doubled sky is white all over, wherever it was cropped.
        white = {f for f in files if name == "photos/brighter" and mean(grey(folder / f)) == 255}
        assert len(white) < 5
        once = [digest for file, digest in files.items() if file not in white]
        assert len(set(once)) == len(once), name


@pytest.mark.soak
def test_writing_twice_gives_the_same_bytes(
    folder: Path, written: dict[str, Path], tmp_path: Path
) -> None:
    write_datasets(tmp_path)
    assert digests(tmp_path) == digests(folder)


@pytest.mark.soak
def test_another_seed_gives_other_crops(written: dict[str, Path], tmp_path: Path) -> None:
    other = write_datasets(tmp_path, seed=1)
    for name, folder in written.items():
        first, second = set(digests(folder)), set(digests(other[name]))
        assert len(first) == len(second)
        assert len(first & second) < len(first) / 4, name


def test_a_dataset_does_not_depend_on_the_others(
    files: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in reversed(DATASETS):
        with monkeypatch.context() as patch:
            for other, recipe in samples._RECIPES.items():
                if other != name:
                    patch.setitem(samples._RECIPES, other, replace(recipe, images=1))
            assert drawn(name) == files[name]


def test_no_two_datasets_are_drawn_alike(files: dict[str, list[str]]) -> None:
    pictures = {name: [file.split("-s")[0] for file in files[name]] for name in PHOTOS}
    for one, other in combinations(PHOTOS, 2):
        assert len(set(files[one]) & set(files[other])) <= 2, (one, other)  # by chance
        same = sum(a == b for a, b in zip(pictures[one], pictures[other], strict=True))
        assert 0.04 < same / 120 < 0.27, (one, other)  # one in seven


def test_pictures_and_sizes_are_drawn_independently(files: dict[str, list[str]]) -> None:
    photos = [files[name] for name in PHOTOS]
    numbers = [Counter(file.split("-s")[0] for file in of).values() for of in photos]
    assert {len(of) for of in numbers} == {7}
    square = sum((n - 120 / 7) ** 2 / (120 / 7) for of in numbers for n in of)
    assert 14 < square < 68  # chi-squared of 36 degrees of freedom, but for one in a thousand
    sides = Counter(re.findall(r"-s(\d+)-", " ".join(file for of in photos for file in of)))
    assert all(135 < sides[side] < 225 for side in ("128", "192", "256"))  # of 720, a quarter each


def test_other_crops_are_unchanged_and_drawn_from_the_same(written: dict[str, Path]) -> None:
    for name in ("photos/original", "photos/other-crops"):
        for crop, image in pairs(written, name):
            assert mean(ImageChops.difference(crop, image)) < 2  # by JPEG's rounding
    one, other = (samples._RECIPES[name] for name in ("photos/original", "photos/other-crops"))
    assert one == other


def test_brighter_and_darker_crops_have_twice_and_half_the_brightness(
    written: dict[str, Path],
) -> None:
    doubled = [min(255, 2 * value) for value in range(256)] * 3
    for path in written["photos/brighter"].iterdir():
        crop = named("photos/brighter", path).point(doubled).convert("L")
        assert mean(grey(path)) == pytest.approx(mean(crop), abs=1)
    for original, darker in pairs(written, "photos/darker"):
        assert mean(darker) == pytest.approx(mean(original) / 2, abs=1)


def test_contrast_spreads_values(written: dict[str, Path]) -> None:
    seen = pairs(written, "photos/contrast")
    ratios = [spread(changed) / spread(original) for original, changed in seen]
    assert sorted(ratios)[len(ratios) // 2] > 1.3
    means = [sum(mean(image) for image in side) / len(seen) for side in zip(*seen, strict=True)]
    assert means[1] == pytest.approx(means[0], abs=15)


def test_blurred_has_weaker_edges(written: dict[str, Path]) -> None:
    for original, blurred in pairs(written, "photos/blurred"):
        assert edges(blurred) < edges(original) * 0.8


def test_finished_datasets_are_not_written_again(
    folder: Path, written: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    (written["textures"] / ".DS_Store").touch()
    monkeypatch.setattr(samples, "_write", lambda *_: pytest.fail("wrote again"))
    assert write_datasets(folder) == written
    (written["textures"] / ".DS_Store").unlink()
    assert all(path.stat().st_mtime_ns == before[path] for path in before if path.is_file())


@pytest.mark.parametrize("lost", ["samples.json", "text", "photos/darker"])
def test_an_unfinished_folder_is_completed(
    folder: Path, written: dict[str, Path], tmp_path: Path, lost: str
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    if (copy / lost).is_dir():
        shutil.rmtree(copy / lost)
    else:
        (copy / lost).unlink()
    torn = next((copy / "textures").iterdir())
    torn.write_bytes(torn.read_bytes()[:100])
    write_datasets(copy)
    assert digests(copy) == digests(folder)


def test_no_marker_until_all_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saves = 0

    def full_disk(*_: object, **__: object) -> None:
        nonlocal saves
        saves += 1
        if saves == 100:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full_disk)
    with pytest.raises(StorageError, match="No space left"):
        write_datasets(tmp_path)
    assert not (tmp_path / "samples.json").exists()


def test_a_folder_of_another_seed_or_with_other_files_is_refused(
    folder: Path, written: dict[str, Path], tmp_path: Path
) -> None:
    before = digests(folder)
    with pytest.raises(UsageError, match="not of the sample images of seed 1"):
        write_datasets(folder, seed=1)
    assert digests(folder) == before

    holiday = tmp_path / "textures" / "holiday.jpg"
    holiday.parent.mkdir()
    holiday.write_bytes(b"mine")
    with pytest.raises(UsageError, match=r"holiday\.jpg"):
        write_datasets(tmp_path)
    assert list(digests(tmp_path)) == ["textures/holiday.jpg"]
    assert holiday.read_bytes() == b"mine"


@pytest.mark.parametrize("missing", ["skimage", "sklearn"])
def test_a_missing_package_is_named_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    found = samples.find_spec
    monkeypatch.setattr(samples, "find_spec", lambda name: None if name == missing else found(name))
    with pytest.raises(UsageError, match=rf"'{missing}'.*pip install \"vdna-pipeline\[demo\]\""):
        write_datasets(tmp_path)


def test_a_package_without_its_pictures_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hollow = samples._PackagedImage("skimage", "data/absent.png")
    with pytest.raises(UsageError, match=r"'skimage' lacks data/absent\.png"):
        hollow.open()
