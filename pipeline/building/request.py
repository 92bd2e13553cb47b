"""What a build may be asked for: every option once, with its type, default, help and limits.

    >>> Request("photos", "s3://bucket/photos", bins=500).bins
    500

The options stand in groups, and each request is made of the groups that it needs. The command line
and the entries of `datasets.yaml` are generated from them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Annotated, Literal, TypedDict

from pipeline import sources, storage
from pipeline.catalogue import check_name
from pipeline.errors import UsageError
from pipeline.notebook import html_table
from pipeline.options import Option, Options
from pipeline.spec import BINS, DEFAULT_BINS, Alpha, Crop, Exif, Jpeg, Precision, Resize
from pipeline.wording import count_of, option

if TYPE_CHECKING:
    from pipeline.building.movement import Movement
    from pipeline.catalogue import Version
    from pipeline.dna import Failure
    from pipeline.sources import ChangeCounts, ImageChanges

DEFAULT_EXTRACTOR = "efficientnet_lite0"

LISTED = 10
"""How many failures or parts of a result are listed."""

SpecChoice = Literal["same", "new"]

Weights = Annotated[
    str | None, Option("File or url of weights to use instead of the network's own.")
]


@dataclass(frozen=True, kw_only=True)
class NetworkOptions(Options):
    """The options that choose the network."""

    extractor: Annotated[str, Option("Name of the network.")] = DEFAULT_EXTRACTOR
    weights: Weights = None
    taps: Annotated[
        str | None,
        Option(
            "Layers to observe: globs over the network's modules, separated by "
            "commas, such as 'blocks.*,norm' (default: chosen for each network)."
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class HistogramOptions(Options):
    """The options that decide how activations are counted."""

    bins: Annotated[int, BINS] = DEFAULT_BINS
    ranges: Annotated[
        str | None,
        Option(
            "Ranges that the histograms cover: a file of vdna calibrate, or a digest "
            "in the catalogue (default: those that come with the network)."
        ),
    ] = None
    precision: Annotated[Precision, Option("Number format that the network computes with.")] = (
        "fp32"
    )


@dataclass(frozen=True, kw_only=True)
class PixelOptions(Options):
    """The options that decide how an image becomes the network's input."""

    resize: Annotated[
        Resize,
        Option("Filter of the resize: clean-fid's on floats (clean), or torch's on bytes (fast)."),
    ] = "clean"
    crop: Annotated[
        Crop,
        Option("Square to cut out before the resize; none squeezes the whole image into a square."),
    ] = "none"
    exif: Annotated[Exif, Option("Whether to turn an image as its EXIF orientation says.")] = (
        "apply"
    )
    alpha: Annotated[
        Alpha,
        Option(
            "What is put under transparent pixels; drop takes the colour that is stored there, as "
            "the reference does, which is often black."
        ),
    ] = "drop"
    jpeg: Annotated[
        Jpeg,
        Option(
            "How large JPEGs are decoded; scaled decodes those of cameras at 1/2, 1/4 or 1/8 of "
            "their size, several times as fast, and moves a DNA by little."
        ),
    ] = "full"
    decoder: Annotated[
        str | None,
        Option("Name of an image decoder of your own; or nvjpeg, which decodes JPEGs on GPUs."),
    ] = None


@dataclass(frozen=True, kw_only=True)
class SelectionOptions(Options):
    """The options that choose images of the source."""

    limit: Annotated[int | None, sources.LIMIT] = None
    include: Annotated[str | None, Option("Take only names that match this glob.")] = None
    exclude: Annotated[str | None, Option("Leave out names that match this glob.")] = None
    image_column: Annotated[
        str | None,
        Option("Column with the images, or with their names, if a table has several such columns."),
    ] = None
    allow_query: Annotated[
        str | None,
        Option(
            "Take urls whose query (after ?) has these parameters, separated by commas. Queries "
            "are kept in the catalogue, so write a secret as key=${VDNA_QUERY_KEY}; it is read "
            "from that environment variable."
        ),
    ] = None

    @property
    def rules(self) -> sources.Rules:
        """The rules by which the source is listed."""
        return sources.Rules(
            self.include,
            self.exclude,
            image_column=self.image_column,
            allow_query=self.allow_query,
        )


@dataclass(frozen=True, kw_only=True)
class GroupingOptions(Options):
    """The options that say which images belong together."""

    group_by: Annotated[
        str | None,
        Option(
            "Keep images together that depend on each other, such as frames of a video: by this "
            "column of a table or archive, or by this number of leading folders.",
            numeral=True,
        ),
    ] = None
    by: Annotated[
        str | None,
        Option(
            "Also build a dataset NAME/VALUE for each value of this column of a table or archive, "
            "or of this number of leading folders; a dash stands for what a name cannot hold. '' "
            "ends it.",
            numeral=True,
        ),
    ] = None
    pair_by: Annotated[
        str | None,
        Option(
            "Pair images with those of other datasets by the names of their files ('stem'), or by "
            "this column of a table, which also decides the folds of new images (default: by their "
            "paths below the source)."
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class FailureOptions(Options):
    """The option that says how many images may fail."""

    max_failures: Annotated[
        float,
        Option(
            "How many images may be unreadable: a fraction below 1, or a number of images.",
            least=0,
            share=True,
        ),
    ] = 0.01


@dataclass(frozen=True, kw_only=True)
class ReplacementOptions(Options):
    """The options that let a build replace, or leave behind, what may have been meant to stay."""

    replace: Annotated[
        bool,
        Option(
            "Build the dataset even if its source is another than before, or has less than half of "
            "the images."
        ),
    ] = False
    spec: Annotated[
        SpecChoice,
        Option(
            "Whether the dataset must be counted as before (same), or may begin versions that are "
            "counted in another way (new), with other bins, ranges, pixels or another network."
        ),
    ] = "same"


@dataclass(frozen=True, kw_only=True)
class ChangeOptions(Options):
    """The option that states what has changed in the source."""

    changes: Annotated[
        str | None,
        Option(
            "Table of the images that were added, removed or changed since the last build; the "
            "source is not listed then."
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class ShardOptions(Options):
    """The option that says how the work is divided."""

    shard_images: Annotated[int | None, sources.SHARD_IMAGES] = None


@dataclass(frozen=True, kw_only=True)
class CellOptions(Options):
    """The option that says of how many images sums are kept."""

    cell_images: Annotated[int | None, sources.CELL_IMAGES] = None


@dataclass(frozen=True, kw_only=True)
class ProductOptions(Options):
    """The options that say what is kept beside the histograms."""

    layer_gaussian: Annotated[
        bool, Option("Also keep the covariance of each layer, for Fréchet distances.")
    ] = False
    exemplars: Annotated[
        int | None,
        Option(
            "For each neuron, remember this many images that it reacts to most "
            "(default: 8, or as the dataset has it).",
            least=0,
        ),
    ] = None
    exemplar_taps: Annotated[
        str | None,
        Option(
            "Remember images only for neurons of these layers: globs, such as 'blocks.*,head' "
            "(default: all, or as the dataset has it)."
        ),
    ] = None
    image_hashes: Annotated[
        bool | None,
        Option(
            "Keep two hashes of each image, by which repeated ones are found "
            "(default: yes, or as the dataset has it)."
        ),
    ] = None


@dataclass(frozen=True)
class Request(
    NetworkOptions,
    HistogramOptions,
    PixelOptions,
    SelectionOptions,
    GroupingOptions,
    FailureOptions,
    ReplacementOptions,
    ChangeOptions,
    ShardOptions,
    CellOptions,
    ProductOptions,
):
    """A dataset to build.

    The fields that it inherits are the options of its bases, as keywords. `layer_gaussian`,
    `exemplars`, `exemplar_taps`, `image_hashes` and `by` stay with a dataset: where they are not
    given, a later build keeps what the dataset has.

    Attributes:
        name: Name of the dataset in the catalogue.
        source: Where its images are.

    Raises:
        UsageError: A value is not allowed; the message names the field and the value.
    """

    name: Annotated[str, Option("Name of the dataset in the catalogue.", argument=True)]
    source: Annotated[str, Option("Folder, glob, list, table or archive of images.", argument=True)]

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.name.startswith(("/", "~", "./", "../")) or "://" in self.name:
            raise UsageError(
                f"dataset name {self.name!r} is a path or url; the name comes first, and then the "
                f"source, which is {self.source!r} now"
            )
        check_name(self.name)
        _ = self.rules  # refuses what is no number of folders
        if self.changes is not None and self.limit is not None:
            raise UsageError(
                f"limit is {self.limit} and changes is {self.changes!r}; a sample of the images "
                f"cannot be changed by a list, so leave {option('limit')} out"
            )

    @property
    def rules(self) -> sources.Rules:
        """The rules by which the source is listed and grouped."""
        return sources.Rules(
            self.include,
            self.exclude,
            self.group_by,
            self.image_column,
            self.by or None,
            self.allow_query,
            self.pair_by,
        )


@dataclass(frozen=True)
class CalibrationRequest(
    NetworkOptions, PixelOptions, SelectionOptions, FailureOptions, ShardOptions
):
    """Ranges to measure.

    The fields that it inherits are the options of its bases, as keywords. `limit` is the number of
    images of all sources together.

    Attributes:
        sources: Where the images are. An image that several sources list counts once.
        out: The file that the ranges are written to.
        quantile: The share of activations to leave out at either end, or None.

    Raises:
        UsageError: A value is not allowed; the message names the field and the value.
    """

    sources: Annotated[
        Sequence[str], Option("Folders, globs, lists, tables or archives of images.", argument=True)
    ]
    out: Annotated[str, Option("Where to write the result: the ranges (.parquet).")] = (
        "ranges.parquet"
    )
    quantile: Annotated[
        float | None, Option("Leave out this share of activations at either end, such as 0.001.")
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.sources:
            raise UsageError("ranges need at least one source of images")
        if self.quantile is not None and not 0 < self.quantile < 0.5:
            raise UsageError(
                f"quantile is {self.quantile}; it must be above 0 and below 0.5, such as 0.001"
            )


class MetricOptions(TypedDict, total=False):
    """The options of `Request` that `VisualDNA` takes, for type checkers.

    Defaults and help are in `Request`. A test holds the two equal.
    """

    extractor: str
    weights: str | None
    taps: str | None
    bins: int
    ranges: str | None
    precision: Precision
    resize: Resize
    crop: Crop
    exif: Exif
    alpha: Alpha
    image_column: str | None


class MemoryOptions(MetricOptions, total=False):
    """Those that `make_dna` takes."""

    jpeg: Jpeg
    decoder: str | None
    limit: int | None
    include: str | None
    exclude: str | None
    allow_query: str | None
    max_failures: float
    layer_gaussian: bool


@dataclass(frozen=True)
class Result:
    """What became of a request.

    Attributes:
        name: Name of the dataset.
        version: Its version in the catalogue.
        changed: Whether the version was committed now; False if the catalogue held it already.
        counted_shards: How many shards were counted now.
        failures: The images that could not be read.
        ignored: How many files of other kinds were left out, by their extension.
        duplicates: How many images were listed more than once.
        parts: The versions of its parts, by their names.
        replaced: The version that it had before under the same spec, if one with another DNA was
            committed now.
        former_options: The options that read `replaced`: `at`, and `spec` unless that was the
            default.
        former_name: The name that the dataset had then, if `refresh` tells of an earlier change,
            and it was renamed since; else empty.
        changes: What a change list did to the images that were planned last. None if the source was
            listed.
        image_changes: How the images differ from those of the version before. None if there was
            none, if nothing was committed now, or if the list of its images is gone.
        read: How many images were read now, those that could not be read among them.
        read_bytes: Bytes of the images that were read now, where the source states their sizes.
        reused: How many were not, as sums of their shards or cells were stored already.
        seconds: How long it took from the beginning of the call, in which other datasets may have
            been counted, too.
        requests: How many requests storage was sent in that time, for all datasets of the call: by
            this process, and by workers. Those of tasks that decode for workers are left out.
        worker_seconds: How long workers had the shards of this dataset, added up.
        commit: Number of a commit that holds the version; None if that is not known.
        moved: How far the version is from `replaced`. None if that is not known, or was not asked:
            `build` and `refresh` of `pipeline` measure it, and `build_datasets` does not. `refresh`
            has it for 20 hours more, with the `former_options` of that version.
        unmeasured: Why `moved`, or its interval, is not known of a version that was committed now,
            or why `refresh` does not know `moved` of an earlier one; else empty.
        untested: Why that distance cannot raise a drift alarm, however large it is; else empty.
    """

    name: str
    version: Version
    changed: bool
    counted_shards: int
    failures: tuple[Failure, ...]
    ignored: dict[str, int] = field(default_factory=dict)
    duplicates: int = 0
    parts: Mapping[str, Version] = field(default_factory=dict)
    replaced: Version | None = None
    former_options: Mapping[str, int | str] = field(default_factory=dict)
    former_name: str = ""
    changes: ChangeCounts | None = None
    image_changes: ImageChanges | None = None
    read: int = 0
    read_bytes: int = 0
    reused: int = 0
    seconds: float = 0.0
    requests: int = 0
    worker_seconds: float = 0.0
    commit: int | None = None
    moved: Movement | None = None
    unmeasured: str = ""
    untested: str = ""

    @property
    def former_version(self) -> str:
        """The name that reads the version before with the spec of `former_options`: `photos@7`."""
        return f"{self.former_name or self.name}@{self.former_options['at']}"

    def __repr__(self) -> str:
        version = self.version
        failed = f", {version.failed:,} could not be read" if version.failed else ""
        state = "committed" if self.changed else "unchanged"
        return f"<Result {self.name}: {count_of(version.images, 'image')}{failed}, {state}>"

    def _repr_html_(self) -> str:
        version, ignored = self.version, sum(self.ignored.values())
        rows: list[tuple[str, object]] = [
            ("images", f"{version.images:,}"),
            ("could not be read", f"{version.failed:,}"),
            ("files of other kinds", f"{ignored:,}"),
            ("listed more than once", f"{self.duplicates:,}"),
            ("dna", version.dna),
            ("spec", version.spec),
        ]
        if version.transparent is not None:
            rows.insert(2, ("transparent", f"{version.transparent:,}"))
            rows.insert(3, ("of a single colour", f"{version.single_colour:,}"))
        rows += [
            (f"part {name}", count_of(part.images, "image")) for name, part in self.parts.items()
        ]
        if self.image_changes is not None:
            rows.append(("since the version before", str(self.image_changes)))
        if self.changed:
            rows += [("read", count_of(self.read, "image")), ("bytes read", f"{self.read_bytes:,}")]
            rows += [("not read again", count_of(self.reused, "image"))]
        if self.moved is not None:
            rows.append((f"moved since {self.former_version}", self.moved))
        if self.unmeasured:
            rows.append(("how far it moved", self.unmeasured))
        if self.untested:
            rows.append(("drift alarm", self.untested))
        if self.changes is not None:
            rows += [(what, f"{number:,}") for what, number in asdict(self.changes).items()]
        if self.replaced is not None:
            rows.append(("replaces", count_of(self.replaced.images, "image")))
        rows += [("not counted", failure) for failure in self.failures[:LISTED]]
        return html_table(repr(self).strip("<>"), ("", self.name), rows)


def require_apart(root: str, source: str, rules: sources.Rules) -> None:
    """Checks that a catalogue is not inside the folder that is listed, nor by symbolic links.

    Otherwise its own files would be listed as images, and change from run to run.

    Args:
        root: Url of the catalogue.
        source: The source of images, as the user gave it.
        rules: The rules by which it is listed.

    Raises:
        UsageError: The catalogue is inside the source.
    """
    if source and storage.lies_in(root, rules.canonical(source)):
        raise UsageError(
            f"the catalogue {root} is inside the source {source}, and its files would be counted "
            "as images; put it elsewhere"
        )


def require_shared(*places: str) -> None:
    """Checks that workers in other processes can see these places.

    Raises:
        UsageError: A place is in the memory of this process.
    """
    for place in places:
        if not storage.store_of(place).is_shared:
            raise UsageError(
                f"{place}: other processes cannot see memory://; work in this process "
                f"({option('workers', 0)}), or give a place that every worker can read"
            )
