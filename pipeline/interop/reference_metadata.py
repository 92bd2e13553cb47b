"""NAME.json of the reference package: what a file of arrays is of.

>>> read_metadata(data, "cityscapes.json").num_images            # doctest: +SKIP
5000
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError

from pipeline.errors import CorruptFile, redact, wrong_fields
from pipeline.spec import HISTOGRAM, LAYER_GAUSSIAN, MAX_BINS

ReferenceKind = Literal["histogram", "gaussian", "layer-gaussian", "activation-ranges"]

REFERENCE_KINDS: tuple[ReferenceKind, ...] = get_args(ReferenceKind)
"""The kinds of distributions that the reference package saves."""

PRODUCTS_OF: dict[ReferenceKind, tuple[str, ...]] = {
    "histogram": (HISTOGRAM,),
    "gaussian": ("neuron_gaussian",),
    "layer-gaussian": ("neuron_gaussian", LAYER_GAUSSIAN),
    "activation-ranges": ("activation_ranges",),
}
"""What a version that was imported from a file of each kind states as its products."""

TELLS: dict[ReferenceKind, tuple[str, ...]] = {
    "histogram": ("counts",),
    "layer-gaussian": ("mean", "m2"),
    "gaussian": ("mean", "m2"),
    "activation-ranges": ("min", "max"),
}
"""The columns of a DNA that a file of each kind has; scatter matrices are kept apart."""

Text = Annotated[str, Field(min_length=1)]


class _Model(BaseModel):
    model_config = ConfigDict(strict=True)


class DataSettings(_Model):
    """How the reference read the images.

    Attributes:
        crop_to_square_pre_resize: The crop before the resize.
        resize_mode: How images were resized.
        source: Where they are from: a path, or a list of paths.
    """

    crop_to_square_pre_resize: Literal["none", "center", "random"] = "none"
    resize_mode: Literal["clean", "fast", "legacy_tensorflow", "legacy_pytorch"] = "clean"
    source: Any = None

    @property
    def images_from(self) -> str:
        """The source, for people, without secrets."""
        if isinstance(self.source, str):
            return redact(self.source)
        return f"{len(self.source)} files" if isinstance(self.source, list) else "not told"


class ExtractionSettings(_Model):
    """How the reference ran the network.

    Attributes:
        batch_size: The number of images in a batch, which only a note depends on.
    """

    batch_size: Any = None


class Distribution(_Model):
    """What a histogram is like.

    Attributes:
        hist_nb_bins: Its number of bins.
    """

    hist_nb_bins: Annotated[int, Field(ge=2, le=MAX_BINS)]


class Metadata(_Model):
    """The fields of NAME.json that are read. Others are left alone.

    Attributes:
        type: The kind of the arrays.
        vdna_version: The version of the package that saved them.
        feature_extractor_name: The reference's name of the network.
        num_images: The number of images.
        neurons_list: The number of neurons in each layer.
        data_settings: How images were read.
        extraction_settings: How the network was run.
        spec: The spec, in a file that was exported from here.
        npz_sha256: The sha256 of NAME.npz, in such a file.
    """

    type: ReferenceKind
    vdna_version: Text
    feature_extractor_name: Text
    num_images: Annotated[int, Field(ge=1, le=10**12)]
    neurons_list: Annotated[dict[Text, PositiveInt], Field(min_length=1)]
    data_settings: DataSettings
    extraction_settings: ExtractionSettings
    spec: Any = None
    npz_sha256: str | None = None

    @property
    def bins(self) -> int | None:
        """The number of bins; None for files without histograms."""
        return None


class HistogramMetadata(Metadata):
    """The fields of NAME.json beside histograms.

    Attributes:
        distribution: The number of bins.
    """

    distribution: Distribution

    @property
    def bins(self) -> int:
        """The number of bins."""
        return self.distribution.hist_nb_bins


def read_metadata(data: bytes, name: str) -> Metadata:
    """Reads NAME.json.

    Args:
        data: The bytes of the file.
        name: How errors name the file.

    Returns:
        Its fields.

    Raises:
        CorruptFile: If the file is not JSON, or if fields are missing or wrong. The message names
            each with its value.
    """
    fields = read_json(data, name)
    model = HistogramMetadata if fields.get("type") == "histogram" else Metadata
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        raise CorruptFile(f"{name}: {wrong_fields(error)}") from error


def read_json(data: bytes, name: str) -> dict[str, Any]:
    """Reads a JSON object.

    Args:
        data: The bytes of the file.
        name: How errors name the file.

    Returns:
        The object.

    Raises:
        CorruptFile: If the file is torn, nested too deeply, or holds something else.
    """
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CorruptFile(f"{name}: torn, or not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise CorruptFile(
            f"{name}: holds JSON of type {type(fields).__name__}, not an object with fields"
        )
    return fields
