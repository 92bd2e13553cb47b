"""building.request: TODO-DOC"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pipeline import storage
from pipeline.catalogue import Version, check_name
from pipeline.counting import numerics
from pipeline.dna import Failure
from pipeline.errors import UsageError
from pipeline.images import stated_decoder
from pipeline.networks import Network
from pipeline.sources import Rules
from pipeline.spec import Crop, Exif, Precision, Preprocess, Resize, Spec

DEFAULT_MAX_FAILURES = 0.01


@dataclass(frozen=True)
class Request:
    """One dataset to build: its name, where its images are, and what decides the counts.

    `max_failures`: candidates that may fail, as a fraction below 1 or a number from 1 up.
    `layer_gaussian`: keep each layer's mean and scatter matrix too; a dataset that has them keeps
    them from then on. `exemplars`: names to keep of the images that each neuron reacts to most, in
    the layers that match `exemplar_taps`; for None as the dataset has them, or a new one's few.
    `by`: a label of a table, or a number of leading folders; each value's images are a dataset too,
    a part, `NAME/VALUE`, of the same pass. For None as the dataset has it; empty for no parts.
    """

    name: str
    source: str
    extractor: str = "efficientnet_lite0"
    weights: str | None = None
    bins: int = 1000
    precision: Precision = "fp32"
    ranges: str | None = None
    resize: Resize = "clean"
    exif: Exif = "apply"
    crop: Crop = "none"
    taps: str | None = None
    decoder: str | None = None
    limit: int | None = None
    include: str | None = None
    exclude: str | None = None
    group_by: str | None = None
    image_column: str | None = None
    max_failures: float = DEFAULT_MAX_FAILURES
    shard_images: int | None = None
    layer_gaussian: bool = False
    exemplars: int | None = None
    exemplar_taps: str | None = None
    by: str | None = None

    def __post_init__(self) -> None:
        check_name(self.name)
        if not self.max_failures >= 0:
            raise UsageError(f"max_failures is {self.max_failures}; it must not be negative")
        for setting in ("limit", "shard_images"):
            value = getattr(self, setting)
            if value is not None and value < 1:
                raise UsageError(f"{setting} is {value}; it must be at least 1")
        _ = self.rules  # refuses what is no number of folders

    @property
    def rules(self) -> Rules:
        return Rules(self.include, self.exclude, self.group_by, self.image_column, self.by or None)


@dataclass(frozen=True)
class Result:
    """What became of a request: `changed` is False where the catalogue held it already.

    `parts`: the versions of its parts, by their names.
    """

    name: str
    version: Version
    changed: bool
    counted_shards: int
    failures: tuple[Failure, ...]
    ignored: dict[str, int] = field(default_factory=dict)
    duplicates: int = 0
    parts: Mapping[str, Version] = field(default_factory=dict)


def require_apart(root: str, source: str) -> None:
    """A catalogue inside the folder that is listed would list, and change, itself."""
    if source and f"{root}/".startswith(f"{storage.canonical(source)}/"):
        raise UsageError(
            f"the catalogue {root} lies inside the source {source}, and would be counted with it; "
            "put it elsewhere"
        )


def require_shared(*places: str) -> None:
    """Raises `UsageError` for a place that only this process sees."""
    for place in places:
        if not storage.store_of(place).is_shared:
            raise UsageError(
                f"{place}: memory:// is seen by one process only; build in process (--workers 0), "
                "or give a place that every worker can read"
            )


def make_spec(request: Request, network: Network, ranges_digest: str, device: str) -> Spec:
    """What the request counts, as a spec."""
    return Spec(
        extractor=network.name,
        weights_sha256=network.weights_sha256,
        taps=network.taps,
        preprocess=Preprocess(
            network.height,
            network.width,
            network.mean,
            network.std,
            resize=request.resize,
            crop=request.crop,
            exif=request.exif,
            decoder=stated_decoder(request.decoder) if request.decoder else None,
        ),
        ranges_digest=ranges_digest,
        bins=request.bins,
        precision=request.precision,
        bf16_numerics=numerics(network, device) if request.precision == "bf16" else None,
    )
