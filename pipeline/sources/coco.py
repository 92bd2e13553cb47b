"""Reads the annotations of COCO as a table: one image a row, with its main category.

>>> coco_rows("file:///coco/annotations.json")[0]                # doctest: +SKIP
{'file_name': '000000000139.jpg', 'category': 'person', 'coco_url': 'http://…'}
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from posixpath import basename, splitext
from typing import Any

from pipeline import storage
from pipeline.errors import SourceError
from pipeline.sources.rules import Rules, is_relative, parent_folder

COCO_COLUMNS = ("file_name", "category", "coco_url")

_NOT_COCO = (
    "is not a table of images: a .json file must hold annotations of COCO, with a list `images` "
    "that have a `file_name`"
)


def coco_rows(uri: str) -> list[dict[str, Any]]:
    """Reads the images of annotations. The file is held in memory meanwhile.

    Args:
        uri: The file.

    Returns:
        The columns `COCO_COLUMNS` of each image. `category` is the name of the category that covers
        the largest area of the image, by the areas of its annotations or else of their boxes; among
        equals the one with the lowest number. It is None for an image without annotations.

    Raises:
        SourceError: The file does not hold annotations of COCO.
    """
    try:
        data = json.loads(storage.read(uri))
        categories = {one["id"]: str(one["name"]) for one in data.get("categories", [])}
        areas: defaultdict[object, defaultdict[int, float]] = defaultdict(
            lambda: defaultdict(float)
        )
        for one in data.get("annotations", []):
            if "category_id" in one:
                areas[one["image_id"]][one["category_id"]] += _area(one)
        return [
            {
                "file_name": str(image["file_name"]),
                "category": _main_category(areas.get(image["id"], {}), categories),
                "coco_url": image.get("coco_url"),
            }
            for image in data["images"]
        ]
    except (
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        ArithmeticError,
        RecursionError,
    ) as error:
        raise SourceError(f"{uri} {_NOT_COCO} ({type(error).__name__}: {error})") from error


def _main_category(areas: Mapping[int, float], names: Mapping[int, str]) -> str | None:
    """Names the category of the largest area, or None if there is none."""
    if not areas:
        return None
    main = min(areas, key=lambda kind: (-areas[kind], kind))
    return names.get(main, str(main))


def _area(annotation: dict[str, Any]) -> float:
    if annotation.get("area") is not None:
        return float(annotation["area"])
    box = annotation.get("bbox")
    return float(box[2]) * float(box[3]) if box else 0.0


def coco_folder(uri: str, name: str, rules: Rules) -> str:
    """Finds the folder that the images of annotations lie in.

    The annotations of COCO lie in a folder of their own, and name images without theirs.

    Args:
        uri: The annotations.
        name: The name of the first image.
        rules: What the query of a url may have.

    Returns:
        The folder: that of the annotations, or `images` in it or beside it, or a folder beside it
            whose name ends that of the annotations, as `val2017` does `instances_val2017.json`.

    Raises:
        SourceError: The image is in none of them.
    """
    folder = parent_folder(uri)
    if not is_relative(name):
        return folder
    parent = folder.rpartition("/")[0]
    stem = splitext(basename(uri))[0]
    tried = [folder, f"{folder}/images", f"{parent}/images"]
    tried += [f"{parent}/{part}" for part in stem.split("_")[1:]]
    tried += [f"{parent}/images/{part}" for part in stem.split("_")[1:]]
    for place in tried:
        if storage.exists(rules.uri_of(name, place)):
            return place
    raise SourceError(
        f"{uri} names {name!r}, which is in none of these folders: {', '.join(tried)}; put the "
        "annotations beside the images"
    )
