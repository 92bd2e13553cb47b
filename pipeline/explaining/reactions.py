"""The images that a neuron reacts to most, which can be read again from where they lie.

>>> found = explain(Catalogue("dnas"), "sunny", "rainy")              # doctest: +SKIP
>>> of_sunny, of_rainy = found.reactions[0]                           # doctest: +SKIP
>>> of_sunny[0].image()                                               # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pipeline import images, storage
from pipeline.catalogue import Catalogue, Version
from pipeline.errors import NotFound
from pipeline.sources import Members, find_entries
from pipeline.spec import Preprocess

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class ImageReader:
    """Reads images of a version again.

    Attributes:
        manifest: The uri of the version's manifest.
        rule: The limits, EXIF rule and decoder by which its images were counted.
    """

    manifest: str
    rule: Preprocess

    def read(self, uri: str, member: str) -> Image.Image:
        """Reads one image.

        Args:
            uri: Where the image is.
            member: Its name inside an archive, or empty.

        Returns:
            The image of its own size, in RGB.

        Raises:
            NotFound: The manifest does not list the image.
        """
        from PIL import Image

        key = uri, member
        with storage.open_random(self.manifest) as file:
            entries = find_entries(file, {key}, self.manifest, lambda: True)
        if key not in entries:
            raise NotFound(f"{self.manifest} does not list {storage.spelled(uri, member)}")
        with closing(Members([entries[key]], self.rule.max_bytes, 1)) as members:
            data = members.fetch(entries[key])
        return Image.fromarray(images.decode(data, self.rule).pixels)


@dataclass(frozen=True)
class Reaction:
    """An image, and how strongly a neuron reacts to it.

    Attributes:
        uri: Where the image is.
        member: Its name inside an archive, or empty.
        reaction: Mean of the neuron's activations over the image.
        reader: Reads the image again; None if it is not known where it was listed.
    """

    uri: str
    member: str
    reaction: float
    reader: ImageReader | None = field(default=None, repr=False, compare=False)

    def __str__(self) -> str:
        return storage.spelled(self.uri, self.member)

    def image(self) -> Image.Image:
        """Reads the image again from where it lies.

        Returns:
            The image of its own size, in RGB, as a picture of PIL.

        Raises:
            NotFound: It is not known where the image was listed.
            BadImage: The image cannot be decoded.
            SourceError: The image is gone, or is not what was counted.
        """
        if self.reader is None:
            raise NotFound(f"it is not known how {self} was listed")
        return self.reader.read(self.uri, self.member)


Reactions = tuple[Reaction, ...] | None
"""Images of the largest reactions, the largest first. None if none are kept."""


def strongest_reactions(
    catalogue: Catalogue, name: str, version: Version, neurons: Sequence[tuple[str, int]]
) -> list[Reactions]:
    """Finds the images that a dataset keeps of some neurons.

    Args:
        catalogue: Where the dataset is.
        name: Its name.
        version: Its version.
        neurons: The layer and the number of each neuron.

    Returns:
        The images of each neuron; None if the dataset keeps none of it.
    """
    if "exemplars" not in version.sha256:
        return [None] * len(neurons)
    kept = catalogue.exemplars(name, version)
    manifest = catalogue.uri("manifests", version.spec, name, version.manifest)
    reader = ImageReader(manifest, catalogue.spec(version.spec).preprocess)
    return [
        tuple(
            Reaction(row["uri"], row["member"], row["reaction"], reader)
            for row in kept.of_neuron(*neuron)
        )
        if not kept.settings.layers or neuron[0] in kept.settings.layers
        else None
        for neuron in neurons
    ]
