"""Images in memory as candidates: arrays, PIL images, tensors, and datasets of them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from threading import Lock
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from pipeline import images
from pipeline.errors import BadImage, UsageError
from pipeline.sources import Entry
from pipeline.spec import Alpha, Exif

if TYPE_CHECKING:
    from numpy.typing import NDArray


class IndexedImages(Protocol):
    """A dataset that gives its items by their number, as torch's and Hugging Face's do."""

    def __len__(self) -> int:
        """Returns how many items there are."""

    def __getitem__(self, index: int, /) -> Any:
        """Returns an item."""


MemorySource = Iterable[Any] | IndexedImages
"""Paths, images, or a dataset of images."""

PREFIX = "memory-"


@dataclass(frozen=True)
class MemoryImages:
    """Images that are read from a sequence or a dataset when they are needed.

    Attributes:
        items: The sequence or dataset.
        exif: Whether the EXIF orientation of PIL images is applied.
        alpha: What is put under transparent pixels of PIL images.
        column: The column of the image in items that are mappings; None for `image`.
    """

    items: IndexedImages
    exif: Exif
    alpha: Alpha
    column: str | None = None
    _lock: Lock = field(default_factory=Lock)

    @classmethod
    def of(cls, source: MemorySource, exif: Exif, alpha: Alpha, column: str | None) -> MemoryImages:
        """Takes a source as `make_dna` gets it.

        Args:
            source: Paths, images or a dataset. An iterator is read into memory.
            exif: Whether the EXIF orientation of PIL images is applied.
            alpha: What is put under transparent pixels of PIL images.
            column: The column of the image in items that are mappings.

        Returns:
            The images.

        Raises:
            UsageError: The source is none of these.
        """
        indexed = hasattr(source, "__getitem__") and hasattr(source, "__len__")
        if not indexed and not hasattr(source, "__iter__"):
            raise UsageError(
                f"the source has type {type(source).__name__}; give a path or url, a list of them, "
                "images, or a dataset of images"
            )
        return cls(source if indexed else list(source), exif, alpha, column)  # type: ignore[arg-type]  # it has both methods

    @cached_property
    def names(self) -> list[str]:
        """The paths and urls, if the source consists of them; else an empty list."""
        if not isinstance(self.items, Sequence) or not self.items:
            return []
        paths = [isinstance(item, str | os.PathLike) for item in self.items]
        if not any(paths):
            return []
        if not all(paths):
            index = paths.index(False)
            raise UsageError(
                f"image {index} has type {type(self.items[index]).__name__}, and others are paths; "
                "give only paths or only images"
            )
        return [os.fspath(item) for item in self.items]

    @property
    def entries(self) -> Iterator[Entry]:
        """A candidate for each image, in their order."""
        return (Entry(f"{PREFIX}{index:09d}", "", 0, "") for index in range(len(self.items)))

    def fetch(self, entry: Entry) -> images.Decoded:
        """Reads the image of a candidate.

        Args:
            entry: One of `entries`.

        Returns:
            Its pixels, and whether any of them is transparent.

        Raises:
            UsageError: The item is no image.
        """
        index = int(entry.uri.removeprefix(PREFIX))
        with self._lock:  # a dataset need not be safe to read from several threads
            item = self.items[index]
        return pixels_of_item(item, index, self.exif, self.alpha, self.column)


def pixels_of_item(
    item: Any, index: int, exif: Exif, alpha: Alpha, column: str | None
) -> images.Decoded:
    """Turns an item of a dataset into pixels.

    Args:
        item: An image, a tuple that begins with one, or a mapping with a column of one.
        index: The item's number, for errors.
        exif: Whether the EXIF orientation of a PIL image is applied.
        alpha: What is put under transparent pixels of a PIL image.
        column: The column of the image in a mapping; None for `image`.

    Returns:
        Its pixels, and whether any of them is transparent: only a PIL image says so.

    Raises:
        UsageError: There is no such column, or it holds no image.
    """
    from PIL import Image

    if isinstance(item, Mapping):
        key = column or "image"
        if key not in item:
            raise UsageError(
                f"image {index} has no column {key!r}; it has {', '.join(map(str, item))} "
                "(choose with image_column)"
            )
        item = item[key]
    elif isinstance(item, tuple | list) and item:
        item = item[0]
    if isinstance(item, Image.Image):
        try:
            return images.pixels_of(item, exif, alpha)
        except BadImage as bad:
            raise UsageError(f"image {index} cannot be counted: {bad}") from bad
    if isinstance(item, np.ndarray):
        array = item
    elif type(item).__module__.split(".")[0] == "torch":
        array = _pixels_of_tensor(item, index)
    else:
        raise UsageError(
            f"image {index} has type {type(item).__name__}; give arrays, PIL images, torch "
            "tensors, or "
            "paths and urls of files"
        )
    if array.ndim == 2:
        array = np.repeat(array[:, :, None], 3, axis=2)
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8 or not array.size:
        raise UsageError(
            f"image {index} has shape {array.shape} and type {array.dtype}; give uint8 of "
            f"(height, width, 3) or (height, width){_remedy(array)}"
        )
    return images.Decoded(np.ascontiguousarray(array))


def _remedy(array: NDArray[Any]) -> str:
    """Says how to make an image of what looks like one in another form; else nothing."""
    if np.issubdtype(array.dtype, np.floating):
        return ". Values from 0 to 1 become it by np.rint(255 * image).astype(np.uint8)"
    if array.ndim == 3 and array.shape[0] == 3:
        return ". Channels that come first are put last by np.moveaxis(image, 0, -1)"
    return ""


def _pixels_of_tensor(tensor: Any, index: int) -> NDArray[Any]:
    """Turns a (channels, height, width) tensor into an array (height, width, channels)."""
    array: NDArray[Any] = tensor.detach().cpu().numpy()
    if array.ndim == 3 and array.shape[0] in (1, 3):
        array = array.transpose(1, 2, 0)
        array = array.repeat(3, axis=2) if array.shape[2] == 1 else array
    if not np.issubdtype(array.dtype, np.floating):
        return array
    if not ((array >= 0) & (array <= 1)).all():
        raise UsageError(
            f"image {index} is a tensor of floats outside 0 to 1; give it before it is normalised"
        )
    pixels: NDArray[np.uint8] = np.rint(array * 255).astype(np.uint8)
    return pixels
