"""Writes real photos that come inside the dependencies as folders of image files.

    >>> from pipeline.sources import write_datasets
    >>> folders = write_datasets(Path("samples"))      # needs vdna-pipeline[demo], no network
    >>> folders["photos/darker"]
    PosixPath('samples/photos/darker')

An image is a square crop, at its own resolution, of a picture that the installed scikit-image or
scikit-learn carries. Only files inside the two packages are read; nothing is downloaded.

Each dataset is an independent sample, as error bars suppose: for every image a picture of the
dataset, a side and a place are drawn anew, from random numbers of the dataset's own. So
`photos/other-crops` differs from `photos/original` by sampling alone; the other variants differ by
their change, and by sampling.

`china.jpg` and `flower.jpg` are CC BY 2.0 (their README in scikit-learn names the authors).
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from PIL import Image

from pipeline.altered_pictures import blurred, brightened, contrasted
from pipeline.errors import StorageError, UsageError

RECIPE = 2
"""Version of what is written; a change of a single crop or colour is a new version."""

DATASETS: dict[str, str] = {
    "photos/original": "crops of seven colour photographs: people, animals, things, places",
    "photos/brighter": "crops of the same, every value doubled, clipped",
    "photos/darker": "crops of the same, every value halved",
    "photos/contrast": "crops of the same, contrast times 2 about the photograph's mean",
    "photos/blurred": "crops of the same, Gaussian blur of 3 pixels",
    "photos/other-crops": "crops of the same, drawn anew: nothing else differs",
    "textures": "brick, grass and gravel, in grey",
    "astronomy": "galaxies of the Hubble deep field, and the moon's surface",
    "microscopy": "stained tissue, and a single cell",
    "retina": "the back of an eye, with its vessels",
    "text": "a printed page and handwriting, in grey",
}

_MARKER = "samples.json"


@dataclass(frozen=True)
class _PackagedImage:
    """A file inside a package. `margin` pixels are cut from each side before cropping."""

    package: str
    file: str
    margin: int = 0

    @property
    def name(self) -> str:
        return Path(self.file).stem.replace("_", "-")

    def open(self) -> Image.Image:
        spec = find_spec(self.package)
        places = spec.submodule_search_locations if spec else None
        if not places:
            raise UsageError(
                f"the sample images come with the package {self.package!r}, which is not "
                'installed: pip install "vdna-pipeline[demo]"'
            )
        path = Path(places[0]) / self.file
        if not path.is_file():
            raise UsageError(
                f"the installed package {self.package!r} lacks {self.file}: "
                'pip install --force-reinstall "vdna-pipeline[demo]"'
            )
        with Image.open(path) as image:
            cut, (width, height) = self.margin, image.size
            return image.crop((cut, cut, width - cut, height - cut))


@dataclass(frozen=True)
class _DatasetRecipe:
    """How to make a dataset; pictures and sides are equally likely."""

    pictures: tuple[_PackagedImage, ...]
    images: int
    sides: tuple[int, ...] = (128, 192, 256, 320)
    change: Callable[[Image.Image], Image.Image] = Image.Image.copy
    suffix: str = "jpg"


def _skimage(*files: str, margin: int = 0) -> tuple[_PackagedImage, ...]:
    return tuple(_PackagedImage("skimage", f"data/{file}", margin) for file in files)


def _sklearn(*files: str) -> tuple[_PackagedImage, ...]:
    return tuple(_PackagedImage("sklearn", f"datasets/images/{file}") for file in files)


def _photos(change: Callable[[Image.Image], Image.Image] = Image.Image.copy) -> _DatasetRecipe:
    pictures = _skimage(
        "astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg"
    )
    return _DatasetRecipe(pictures + _sklearn("china.jpg", "flower.jpg"), 120, change=change)


_RETINA_MARGIN = 210  # leaves the square inside the disc, without the black around it

_RECIPES: dict[str, _DatasetRecipe] = {
    "photos/original": _photos(),
    "photos/brighter": _photos(lambda image: brightened(image, 2.0)),
    "photos/darker": _photos(lambda image: brightened(image, 0.5)),
    "photos/contrast": _photos(lambda image: contrasted(image, 2.0)),
    "photos/blurred": _photos(lambda image: blurred(image, 3)),
    "photos/other-crops": _photos(),
    "textures": _DatasetRecipe(_skimage("brick.png", "grass.png", "gravel.png"), 50),
    "astronomy": _DatasetRecipe(_skimage("hubble_deep_field.jpg", "moon.png"), 50),
    "microscopy": _DatasetRecipe(_skimage("cell.png", "ihc.png"), 50),
    "retina": _DatasetRecipe(_skimage("retina.jpg", margin=_RETINA_MARGIN), 50),
    "text": _DatasetRecipe(
        _skimage("page.png", "text.png"), 50, sides=(96, 128, 160), suffix="png"
    ),
}


def write_datasets(folder: Path, *, seed: int = 0) -> dict[str, Path]:
    """Writes each dataset as a folder of JPEG or PNG files. Nothing is ever deleted.

    Args:
        folder: Where the datasets go. Datasets that are there already are left as they are.
        seed: Decides the crops. With the same Pillow the files have the same bytes, too.

    Returns:
        The folder of each dataset, by its name.

    Raises:
        UsageError: A package is missing, or other files lie under the name of a dataset.
        StorageError: The disk refuses.
    """
    folders = {name: folder / name for name in DATASETS}
    marker = folder / _MARKER
    try:
        if not _finished(marker, folders, seed):
            _write(marker, folders, seed)
    except OSError as error:
        raise StorageError(f"cannot write the sample images to {folder}: {error}") from error
    return folders


def _finished(marker: Path, folders: dict[str, Path], seed: int) -> bool:
    if not marker.is_file():
        return False
    counts = {name: len(_listing(path)) for name, path in folders.items()}
    return marker.read_text(encoding="utf-8") == _marker_text(counts, seed)


def _marker_text(counts: dict[str, int], seed: int) -> str:
    return json.dumps({"recipe": RECIPE, "seed": seed, "images": counts}, indent=1) + "\n"


def _listing(folder: Path) -> set[str]:
    """Returns the names in a folder, without hidden files, which desktops add."""
    if not folder.is_dir():
        return set()
    return {path.name for path in folder.iterdir() if not path.name.startswith(".")}


def _refuse_other_files(folders: dict[str, Path], seed: int) -> None:
    for name, path in folders.items():
        planned = {file for file, _ in _crops(name, seed)}
        if others := sorted(_listing(path) - planned):
            raise UsageError(
                f"{path} holds {others[0]!r}, which is not of the sample images of seed {seed}, "
                f"recipe {RECIPE}: name an empty folder"
            )


def _write(marker: Path, folders: dict[str, Path], seed: int) -> None:
    _refuse_other_files(folders, seed)
    marker.unlink(missing_ok=True)
    for name, path in folders.items():
        path.mkdir(parents=True, exist_ok=True)
        for file, image in _crops(name, seed):
            # Without chroma subsampling, so that a colour edge survives in small crops.
            options: dict[str, Any] = {"quality": 95, "subsampling": 0}
            image.save(path / file, **({} if file.endswith(".png") else options))
    counts = {name: len(_listing(path)) for name, path in folders.items()}
    marker.write_text(_marker_text(counts, seed), encoding="utf-8")


def _crops(name: str, seed: int) -> Iterator[tuple[str, Image.Image]]:
    """Draws the images of a dataset.

    Yields:
        The file's name (picture, side, left and upper edge) and the pixels of each image.
    """
    recipe = _RECIPES[name]
    rng = random.Random(f"{seed}/{name}")  # of its own: no other dataset's draws change these
    sources = {picture.name: recipe.change(picture.open()) for picture in recipe.pictures}
    drawn: set[str] = set()
    while len(drawn) < recipe.images:
        picture = rng.choice(list(sources))
        source = sources[picture]
        side = min(rng.choice(recipe.sides), *source.size)
        x, y = (rng.randint(0, length - side) for length in source.size)
        file = f"{picture}-s{side}-x{x:04d}-y{y:04d}.{recipe.suffix}"
        if file not in drawn:
            drawn.add(file)
            yield file, source.crop((x, y, x + side, y + side))
