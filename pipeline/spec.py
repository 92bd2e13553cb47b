"""Defines what is counted (`Spec`), on which hardware (`Numerics`), and how fast (`Resources`).

    >>> from pipeline.spec import Preprocess, Spec, Tap
    >>> rule = Preprocess(height=224, width=224, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    >>> a = Spec("net", "ab" * 32, (Tap("stem", 8, 49),), rule, ranges_digest="00", bins=1000)
    >>> a.differences(replace(a, bins=100))
    {'bins': (1000, 100)}

Only a `Spec` is hashed, and its digest decides what may be added or compared.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cache, cached_property
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast, get_args

from annotated_types import Ge, Lt, MinLen

from pipeline.errors import CorruptFile, SpecMismatch, UsageError, wrong_fields
from pipeline.options import Option, Options
from pipeline.wording import option

if TYPE_CHECKING:
    from pydantic import TypeAdapter

Precision = Literal["fp32", "bf16"]

Backend = Literal["torch", "openvino"]

BackendChoice = Literal["auto", "torch", "openvino"]

DecodePlace = Literal["auto", "here", "ahead"]

Resize = Literal["clean", "fast"]

Crop = Literal["none", "center"]

Exif = Literal["apply", "ignore"]

Alpha = Literal["drop", "white", "black", "checker"]
Jpeg = Literal["full", "scaled"]

COUNTING_RULE = 1
"""Version of the rule in `pipeline.counting.histogram`. Any change of a count needs a new one."""

COLOUR_RULE = "rgb8-1"
"""Version of the rule in `pipeline.images.decoding` that converts all colour modes to 8-bit RGB."""


def digest_of(*parts: object) -> str:
    """Hashes values that JSON can hold.

    Args:
        *parts: The values.

    Returns:
        The first 128 bits, as hex, of the sha256 of their canonical JSON.
    """
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


DEFAULT_BINS = 1000
"""The default number of bins of a histogram, which is the reference implementation's."""

Count = Annotated[int, Ge(0), Lt(2**63)]

Name = Annotated[str, MinLen(1)]

Number = int | float
"""A number of JSON. Digests of 0 and 0.0 differ."""

MAX_BINS = 2**20
"""The most bins of a histogram; more would not fit the int32 indices of its kernel."""

BINS = Option("Bins of each neuron's histogram.", least=2, most=MAX_BINS)
"""The option that says how many bins a histogram has."""

FOLDS = 16
"""The number of groups of shards that are summed separately, for the error bars of distances."""

LEAST_FOLDS = 6
"""The fewest folds that are tested. Their smallest possible p is 1 / 2^5, which is below 5%."""


_STRICT = {"extra": "forbid", "strict": True, "allow_inf_nan": False}
"""How pydantic reads these classes from JSON: without unknown fields or values of other types."""


@dataclass(frozen=True)
class Tap:
    """One observed module of a network.

    Attributes:
        name: The path of the module.
        neurons: The number of its channels.
        positions: How many spatial positions, or tokens, it has per image.
    """

    name: Name
    neurons: Count
    positions: Count

    __pydantic_config__ = _STRICT


@dataclass(frozen=True)
class Preprocess:
    """How bytes become the network's input.

    Every field changes pixels, or which images are counted.

    Attributes:
        height: The height of the network's input, in pixels.
        width: The width of the network's input, in pixels.
        mean: The number that is subtracted from each channel, after it is scaled to [0, 1].
        std: The number that each channel is then divided by.
        resize: How the resize rounds: `clean` once at the end, `fast` in between as well.
        crop: Whether the largest square in the middle is cut out before the resize.
        colour: The version of the rule that takes any colour mode to RGB.
        exif: Whether an orientation that the file states turns the image.
        max_bytes: The most bytes of an image. A larger one is not read and counts as a failure.
        max_pixels: The most pixels of an image. A larger one is not decoded and counts as a
            failure.
        decoder: A user's own decoder or `nvjpeg`, as `NAME@VERSION`. None means the built-in one.
        alpha: What is put under transparent pixels; `drop` takes the colour that is stored there.
        jpeg: Whether large JPEGs are decoded in `full`, or `scaled` down by their decoder.
    """

    height: Count
    width: Count
    mean: tuple[Number, Number, Number]
    std: tuple[Number, Number, Number]
    resize: Resize = "clean"
    crop: Crop = "none"
    colour: Name = COLOUR_RULE
    exif: Exif = "apply"
    max_bytes: Count = 256 * 2**20
    max_pixels: Count = 89_478_485
    decoder: Name | None = None
    alpha: Alpha = "drop"
    jpeg: Jpeg = "full"

    def to_json(self) -> dict[str, Any]:
        """Returns the fields by name, without the decoder, alpha and jpeg of the reference."""
        data = _by_name(self)
        if self.decoder is None:
            del data["decoder"]
        if self.alpha == "drop":
            del data["alpha"]
        if self.jpeg == "full":
            del data["jpeg"]
        return data

    __pydantic_config__ = _STRICT


BF16_LIBRARIES: tuple[str, ...] = ("timm", "torch", "torchvision")
"""The libraries that compute the network, whose versions a spec of bf16 states. The others prepare
its input and count its output, alike in both precisions (decisions/0011)."""

ANY_INSTRUCTIONS = "any"
"""Where the instructions of a CPU are not told apart: in fp32, and on GPUs."""


@dataclass(frozen=True)
class Numerics:
    """The hardware, libraries and settings that change results by rounding only.

    They are recorded, and a comparison warns if they differ. In bf16 they change nearly every
    activation, so there they are part of the spec.

    Attributes:
        device: The kind of device: `cpu` or `cuda`.
        compiled: Whether the network is compiled.
        folded: Whether batch normalisations are folded into convolutions.
        micro_batch: How many images the network sees at a time.
        threads: How many threads one operation of the network uses.
        versions: The libraries and their versions, sorted by name.
        resized: Where images are resized: `cpu`, or the version of the rule by which a GPU does it.
        instructions: The widest instructions of the CPU that computes, in bf16 only.
    """

    device: Name
    compiled: bool
    folded: bool
    micro_batch: Count
    threads: Count
    versions: tuple[tuple[Name, Name], ...]
    resized: Name = "cpu"
    instructions: Name = ANY_INSTRUCTIONS

    __pydantic_config__ = _STRICT

    @property
    def in_bf16(self) -> Numerics:
        """What a spec of bf16 states of them."""
        stated = tuple(pair for pair in self.versions if pair[0] in BF16_LIBRARIES)
        return replace(self, versions=stated)

    def require_here(self, here: Numerics) -> None:
        """Refuses to count by a spec of bf16 that states these numerics.

        Args:
            here: What this process computes with.

        Raises:
            SpecMismatch: They differ in what the spec states. The message names each such field
                with both values, and what to do.
        """
        stated, mine = (flat_numerics(each.to_json()) for each in (self, here))
        differing = {n: (a, mine.get(n)) for n, a in stated.items() if a != mine.get(n)}
        if differing:
            told = "; ".join(f"{n} is {a} there and {b} here" for n, (a, b) in differing.items())
            raise SpecMismatch(
                f"in bf16 the numerics are part of the spec, and {told}. {_bf16_remedy(differing)}"
            )

    def to_json(self) -> dict[str, Any]:
        """Returns the fields as types of JSON; the last two only if they are not the default."""
        data = _by_name(self) | {"versions": dict(self.versions)}
        if self.resized == "cpu":
            del data["resized"]
        if self.instructions == ANY_INSTRUCTIONS:
            del data["instructions"]
        return data

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Numerics:
        """Reads what `to_json` made.

        Args:
            data: The decoded JSON.

        Returns:
            The numerics.

        Raises:
            CorruptFile: A field is missing, unknown, or of another type.
        """
        return cast(Numerics, _validated(cls, _with_pairs(data), "numerics"))


@dataclass(frozen=True)
class Spec:
    """Everything that decides what is counted. DNAs of equal digests can be compared.

    Attributes:
        extractor: The name of the network.
        weights_sha256: The sha256 of its weights.
        taps: The modules observed, in order.
        preprocess: How bytes become the network's input.
        ranges_digest: The digest of the ranges that histograms are cut from.
        bins: How many bins a histogram has.
        precision: The number format that the network computes in.
        counting: The version of the counting rule.
        bf16_numerics: The numerics if the precision is bf16, and else None.
    """

    extractor: Name
    weights_sha256: Name
    taps: tuple[Tap, ...]
    preprocess: Preprocess
    ranges_digest: Name
    bins: Count = DEFAULT_BINS
    precision: Precision = "fp32"
    counting: Count = COUNTING_RULE
    bf16_numerics: Numerics | None = None

    __pydantic_config__ = _STRICT

    def __post_init__(self) -> None:
        BINS.require("bins", self.bins)
        choices = {
            "precision": Precision,
            "resize": Resize,
            "crop": Crop,
            "exif": Exif,
            "alpha": Alpha,
            "jpeg": Jpeg,
        }
        for name, allowed in choices.items():
            value = getattr(self if name == "precision" else self.preprocess, name)
            if value not in get_args(allowed):
                raise UsageError(f"{name} is {value!r}; choose {' or '.join(get_args(allowed))}")
        if self.preprocess.decoder and self.preprocess.alpha != "drop":
            raise UsageError(
                f"alpha is {self.preprocess.alpha!r}, and the decoder {self.preprocess.decoder} "
                "returns pixels without transparency; leave one of the two out"
            )
        if self.preprocess.decoder and self.preprocess.jpeg != "full":
            raise UsageError(
                f"jpeg is {self.preprocess.jpeg!r}, and the decoder {self.preprocess.decoder} "
                "decodes in its own way; leave one of the two out"
            )
        if (self.precision == "bf16") != (self.bf16_numerics is not None):
            raise UsageError("bf16_numerics belongs to a bf16 spec, and only to one")
        names = [tap.name for tap in self.taps]
        if not names or len(set(names)) != len(names):
            raise UsageError(f"taps must be at least one, with distinct names; got {names}")

    @cached_property
    def digest(self) -> str:
        """A hash of all fields, which names the spec."""
        return digest_of("spec", self.to_json())

    @property
    def layers(self) -> tuple[str, ...]:
        """The names of the taps, in order."""
        return tuple(tap.name for tap in self.taps)

    @property
    def shape(self) -> tuple[tuple[str, int], ...]:
        """The name of each tap and the number of its neurons, in order."""
        return tuple((tap.name, tap.neurons) for tap in self.taps)

    @property
    def neurons(self) -> int:
        """How many neurons all taps have together."""
        return sum(tap.neurons for tap in self.taps)

    @property
    def slices(self) -> list[slice]:
        """For each layer, the slice of its neurons among those of all layers."""
        ends = list(accumulate(tap.neurons for tap in self.taps))
        return [slice(end - tap.neurons, end) for tap, end in zip(self.taps, ends, strict=True)]

    def tap(self, layer: str) -> Tap:
        """Finds a tap by its name.

        Args:
            layer: The name.

        Returns:
            The tap.

        Raises:
            UsageError: There is no such tap.
        """
        for tap in self.taps:
            if tap.name == layer:
                return tap
        raise UsageError(f"no layer {layer!r} in {self.extractor}; it has {', '.join(self.layers)}")

    def to_json(self) -> dict[str, Any]:
        """Returns the fields as types of JSON. The digest is computed from them."""
        data = _by_name(self) | {"preprocess": self.preprocess.to_json()}
        data["taps"] = [_by_name(tap) for tap in self.taps]
        if self.bf16_numerics is not None:
            data["bf16_numerics"] = self.bf16_numerics.to_json()
        return cast(dict[str, Any], json.loads(json.dumps(data)))

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Spec:
        """Reads what `to_json` made.

        Args:
            data: The decoded JSON.

        Returns:
            The spec.

        Raises:
            CorruptFile: A field is missing, unknown, or of another type.
            UsageError: The fields contradict each other.
        """
        if isinstance(data, dict) and data.get("bf16_numerics") is not None:
            data = data | {"bf16_numerics": _with_pairs(data["bf16_numerics"])}
        return cast(Spec, _validated(cls, data, "a spec"))

    def differences(self, other: Spec) -> dict[str, tuple[object, object]]:
        """Compares two specs field by field.

        Args:
            other: Another spec.

        Returns:
            The fields that differ, by their dotted names, each with this spec's and the other's
            value.
        """
        mine, theirs = _flat(self._whole()), _flat(other._whole())
        return {
            name: (mine.get(name), theirs.get(name))
            for name in sorted(mine.keys() | theirs.keys())
            if mine.get(name) != theirs.get(name)
        }

    def _whole(self) -> dict[str, Any]:
        """Returns all fields, those too that `to_json` leaves out."""
        data = self.to_json() | {"preprocess": _by_name(self.preprocess)}
        if self.bf16_numerics is not None:
            data["bf16_numerics"]["resized"] = self.bf16_numerics.resized
            data["bf16_numerics"]["instructions"] = self.bf16_numerics.instructions
        return data

    def require_same(self, other: Spec, mine: str, theirs: str) -> None:
        """Refuses a spec that differs from this one.

        Args:
            other: The other spec.
            mine: What errors call this spec's owner.
            theirs: What errors call the other's owner.

        Raises:
            SpecMismatch: They differ. The message names every such field with both values.
        """
        if self.digest == other.digest:
            return
        differing = self.differences(other)
        told = "; ".join(f"{name}: {a!r} against {b!r}" for name, (a, b) in differing.items())
        if self.bf16_numerics and other.bf16_numerics:
            own = {
                name.rpartition(".")[2]: pair
                for name, pair in differing.items()
                if name.startswith("bf16_numerics.")
            }
            told += f". {_bf16_remedy(own)}" if own else ""
        raise SpecMismatch(f"{mine} and {theirs} were not made the same way: {told}")


@cache
def _adapter(kind: type) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def _validated(kind: type, data: object, about: str) -> object:
    from pydantic import ValidationError

    try:
        return _adapter(kind).validate_json(json.dumps(data))
    except ValidationError as error:
        raise CorruptFile(f"not {about} that can be read: {wrong_fields(error)}") from error
    except (TypeError, ValueError) as error:
        raise CorruptFile(f"not {about} that can be read: {error}") from error


def _with_pairs(numerics: object) -> object:
    """Replaces the versions by sorted pairs, as `Numerics` holds them."""
    if not isinstance(numerics, dict) or "versions" not in numerics:
        return numerics
    versions = numerics["versions"]
    if not isinstance(versions, dict):
        raise CorruptFile(f"versions is {versions!r:.80}; it must give the version of each library")
    return numerics | {"versions": sorted(versions.items())}


def _by_name(value: Preprocess | Numerics | Tap | Spec) -> dict[str, Any]:
    """Returns the fields by name. `asdict` would copy each value, and specs are written often."""
    return {field.name: getattr(value, field.name) for field in fields(value)}


def flat_numerics(stated: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what `Numerics.to_json` made, with all fields, each library, and the backend."""
    own = {name: value for name, value in stated.items() if name != "versions"}
    return {"resized": "cpu", "backend": backend_of(stated)} | own | dict(stated["versions"])


def _bf16_remedy(differing: Mapping[str, tuple[object, object]]) -> str:
    """Says what to do if two sides differ in these numerics, each with the first side's value."""
    libraries = [f"{n}=={a}" for n, (a, _) in differing.items() if n in BF16_LIBRARIES and a]
    others = [name for name in differing if name not in BF16_LIBRARIES]
    ways = [f"pip install {' '.join(libraries)}, or a container image with these"] * bool(libraries)
    ways += [f"the same {', '.join(others)}"] * bool(others)
    return (
        f"In bf16 these move many counts. What makes both sides alike: {'; '.join(ways)}. Or build "
        "both anew, with the same or in fp32, whose specs leave the numerics out"
    )


def backend_of(stated: Mapping[str, Any]) -> Backend:
    """Returns what ran the network under numerics as `Numerics.to_json` states them."""
    return "openvino" if "openvino" in stated["versions"] else "torch"


def _flat(data: dict[str, Any], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in data.items():
        if key == "taps":
            flat[f"{prefix}{key}"] = [(t["name"], t["neurons"], t["positions"]) for t in value]
        elif isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


HISTOGRAM = "histogram"
"""A product that every build makes, but not every imported version has: the histograms."""

PRODUCTS: tuple[str, ...] = (HISTOGRAM, "neuron_gaussian")
"""The products that every build makes. They are part of a shard's key, not of the spec."""

LAYER_GAUSSIAN = "layer_gaussian"
"""An optional product: the mean vector and the scatter matrix of each layer."""

IMAGE_HASHES = "image_hashes"
"""An optional product: hashes of each image, by which repeated ones are found."""


@dataclass(frozen=True)
class Resources(Options):
    """The settings that decide how fast the work is done, and no result.

    None means a value that suits the machine or the cluster. No field is part of a digest.

    Attributes:
        workers: The number of Ray actors. 0 works in this process, without Ray.
        threads: The threads of each worker that run the network. On a CPU each of them runs one
            operation on one core.
        gpus_per_worker: The number of GPUs that a worker takes.
        backend: What runs the network on a CPU, or `auto` for the choice of
            `pipeline.counting.choose_backend`. Results differ by rounding only.
        micro_batch: How many images the network sees at a time. Results differ by rounding only.
        cuda_graphs: Whether a GPU records the forward pass once and replays it. No bit differs.
        decode: Where workers on Ray have images decoded: by themselves, or by tasks on CPUs of any
            node.
        fetch_ahead: How many images are read ahead of the decoder.
        decode_seconds: The time limit of one image, which is then retried in its own process.
        stall_seconds: The job ends if workers run for so long, no shard ends, and no worker gets
            on with its shard. A rerun resumes it.
        capacity_seconds: The job ends if no worker runs for so long, as no node has room for one.
            A rerun resumes it, too.
    """

    workers: Annotated[
        int | None,
        Option(
            "Number of Ray workers; 0 works in this process, without Ray (default: "
            "as many as fit the cores).",
            least=0,
        ),
    ] = None
    threads: Annotated[
        int | None,
        Option("Threads of each worker that run the network (default: up to 4).", least=1),
    ] = None
    gpus_per_worker: Annotated[
        float, Option("GPUs of each worker; with a fraction, workers share one.", least=0)
    ] = 0.0
    backend: Annotated[
        BackendChoice,
        Option(
            "What runs the network: torch, or OpenVINO, which is faster on CPUs for networks of "
            "depthwise convolutions. By auto, OpenVINO runs these where it is installed, and a "
            "dataset stays with what has counted it."
        ),
    ] = "auto"
    micro_batch: Annotated[
        int | None,
        Option(
            "Images that the network sees at a time (default: 8 on CPUs; 8 to 128 on a GPU, by its "
            "memory, and 64 in bf16).",
            least=1,
            most=1024,
        ),
    ] = None
    cuda_graphs: Annotated[
        bool,
        Option("On GPUs, record the forward pass once and replay it, with the same results."),
    ] = True
    decode: Annotated[
        DecodePlace,
        Option(
            "Where images are decoded: `here`, in the workers; `ahead`, by Ray tasks on any node; "
            "or `auto`, by tasks too if a GPU waits for images and CPUs are free."
        ),
    ] = "auto"
    fetch_ahead: Annotated[
        int, Option("Images that are read ahead of the decoder.", least=1, python_only=True)
    ] = 64
    decode_seconds: Annotated[
        float, Option("Seconds that one image may take.", least=0.01, python_only=True)
    ] = 60.0
    stall_seconds: Annotated[
        float,
        Option("Seconds that workers may run and no shard gets on.", least=1, python_only=True),
    ] = 1800.0
    capacity_seconds: Annotated[
        float,
        Option(
            "Seconds that a job on Ray waits for nodes while no worker runs; then it ends, and "
            "resumes when it is run again.",
            least=1,
        ),
    ] = 3600.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.workers == 0 and self.decode == "ahead":
            raise UsageError(
                "decode is 'ahead', which takes tasks of Ray, and workers is 0, which works "
                f"without it; leave out {option('decode', 'ahead')} or {option('workers', 0)}"
            )
        gpus = self.gpus_per_worker
        if gpus != (round(gpus) if gpus > 1 else round(gpus, 4)):
            raise UsageError(
                f"gpus_per_worker is {gpus:g}; Ray gives a worker whole GPUs, or a part of one in "
                f"ten-thousandths; give {option('gpus_per_worker', max(round(gpus), 0.0001))}"
            )

    def require_engine(self, in_process: bool) -> None:
        """Checks that an engine can do what these resources say.

        Args:
            in_process: Whether it works in this process, without Ray.

        Raises:
            UsageError: If it cannot.
        """
        if in_process and self.decode == "ahead":
            raise UsageError(
                "decode is 'ahead', which takes tasks of Ray, and this process works without it; "
                f"give an engine that has Ray, or {option('decode', 'here')}"
            )

    def with_cpus(self, cpus: int) -> Resources:
        """Fills in the fields that are None.

        Args:
            cpus: The number of cores.

        Returns:
            The resources, with up to 4 threads a worker, since Python's lock lets no more run well.
        """
        threads = self.threads or max(1, min(4, cpus))
        workers = self.workers if self.workers is not None else max(1, cpus // threads)
        return replace(self, workers=workers, threads=threads)


def available_cpus() -> int:
    """Returns the number of cores that this process may use, also in a container with a limit."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(cpus, _cpu_limit())))


def _cpu_limit(cgroup: Path = Path("/sys/fs/cgroup")) -> float:
    """Returns how many cores Linux lets this container use at a time; infinity if it states none.

    `docker run --cpus` and a pod's limit set it. The kernel's documents of cgroup v2 and v1 say
    what the files have: the microseconds of work in each period, and those of the period.
    """
    with contextlib.suppress(OSError, ValueError):
        quota, period = (cgroup / "cpu.max").read_text(encoding="utf-8").split()
        return math.inf if quota == "max" else int(quota) / int(period)
    with contextlib.suppress(OSError, ValueError):
        quota, period = (
            (cgroup / "cpu" / f"cpu.cfs_{what}_us").read_text(encoding="utf-8")
            for what in ("quota", "period")
        )
        return math.inf if int(quota) < 0 else int(quota) / int(period)
    return math.inf
