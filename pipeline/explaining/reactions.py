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
from pipeline.sources import Entries, Manifest, Members
from pipeline.spec import Preprocess

if TYPE_CHECKING:
    from PIL import Image

    from pipeline.dna import Exemplars


@dataclass(frozen=True)
class ImageReader:
    """Reads images of a version again.

    Attributes:
        manifest: The uri of the version's manifest.
        entries: The uri of the folder of its candidates.
        rule: The limits, EXIF rule and decoder by which its images were counted.
    """

    manifest: str
    entries: str
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
        data = storage.read(self.manifest)
        entries = Manifest.decode(data, self.manifest, Entries(self.entries)).find({key})
        if key not in entries:
            raise NotFound(f"{self.manifest} does not list {storage.spelled(uri, member)}")
        with closing(Members([entries[key]], self.rule.max_bytes, 1)) as members:
            data = members.fetch(entries[key])
        return Image.fromarray(images.decode(data, self.rule).pixels)


@dataclass(frozen=True)
class NamedImage:
    """An image of a dataset, which can be read again.

    Attributes:
        uri: Where the image is.
        member: Its name inside an archive, or empty.
        reader: Reads the image again; None if it is not known where it was listed.
    """

    uri: str
    member: str
    reader: ImageReader | None = field(default=None, repr=False, compare=False, kw_only=True)

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


@dataclass(frozen=True)
class Reaction(NamedImage):
    """An image, and how strongly a neuron reacts to it.

    Attributes:
        reaction: Mean of the neuron's activations over the image.
    """

    reaction: float


@dataclass(frozen=True)
class TellingImage(NamedImage):
    """An image that carries the difference of a neuron.

    Attributes:
        above: The share of the neuron's activations on it that lie above where the histograms part.
        lean: Mean of `leaning` over its activations: near 1 if such activations are of the first
            dataset only, near -1 if they are of the second only.
    """

    above: float
    lean: float


@dataclass(frozen=True)
class UnlikeImage(NamedImage):
    """An image of a dataset that is unlike another dataset.

    Attributes:
        to_other: The distance of its own DNA to the other dataset, in bins.
        to_own: The distance to its own dataset.
    """

    to_other: float
    to_own: float


Reactions = tuple[Reaction, ...] | None
"""Images of the largest reactions, the largest first. None if none are kept."""


def reader_of(catalogue: Catalogue, name: str, version: Version) -> ImageReader:
    """Returns what reads images of a version again."""
    digest = version.digest_in("manifests")
    manifest = catalogue.uri("manifests", version.spec, name, digest)
    rule = images.without_nvjpeg(catalogue.spec(version.spec).preprocess)
    return ImageReader(manifest, catalogue.entries_uri, rule)


def kept_exemplars(catalogue: Catalogue, name: str, version: Version) -> Exemplars | None:
    """Reads the exemplars of a version, or returns None if it keeps none."""
    return catalogue.exemplars(name, version) if "exemplars" in version.sha256 else None


def strongest_reactions(
    kept: Exemplars | None, reader: ImageReader, neurons: Sequence[tuple[str, int]]
) -> list[Reactions]:
    """Finds the images that a dataset keeps of some neurons.

    Args:
        kept: The exemplars of the dataset; None if it keeps none.
        reader: Reads its images again.
        neurons: The layer and the number of each neuron.

    Returns:
        The images of each neuron; None if the dataset keeps none of it.
    """
    if kept is None:
        return [None] * len(neurons)
    return [
        tuple(
            Reaction(row["uri"], row["member"], row["reaction"], reader=reader)
            for row in kept.of_neuron(*neuron)
        )
        if not kept.settings.layers or neuron[0] in kept.settings.layers
        else None
        for neuron in neurons
    ]
