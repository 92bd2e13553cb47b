"""What is counted (`Spec`), apart from how fast (`Resources`) and by which hardware (`Numerics`).

    >>> from pipeline.spec import Preprocess, Spec, Tap
    >>> rule = Preprocess(height=224, width=224, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    >>> a = Spec("net", "ab" * 32, (Tap("stem", 8, 49),), rule, ranges_digest="00", bins=1000)
    >>> a.differences(replace(a, bins=100))
    {'bins': (1000, 100)}

Only a `Spec` is hashed, and its digest decides what may be added or compared.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import accumulate
from typing import Annotated, Any, Literal, cast

from pipeline.errors import CorruptFile, SpecMismatch, UsageError
from pipeline.options import Option, Options

Precision = Literal["fp32", "bf16"]

Resize = Literal["clean", "fast"]

Crop = Literal["none", "center"]

Exif = Literal["apply", "ignore"]

COUNTING_RULE = 1
"""Version of the rule in `pipeline.histogram`; a change of a single count is a new version."""

COLOUR_RULE = "rgb8-1"
"""Version of the rule in `pipeline.images` that takes any colour mode to 8-bit RGB."""


def digest_of(*parts: object) -> str:
    """128-bit hex digest of JSON-representable values: sha256 of their canonical JSON, cut."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


DEFAULT_BINS = 1000
"""Bins of a histogram, if nothing else is asked for; the reference's number."""

MAX_BINS = 2**20
"""Keeps a histogram's indices within int32."""

FOLDS = 16
"""Groups of shards that are summed apart, for the error bars of distances."""


@dataclass(frozen=True)
class Tap:
    """One observed module: its name, its channels, and spatial positions (or tokens) per image."""

    name: str
    neurons: int
    positions: int


@dataclass(frozen=True)
class Preprocess:
    """From bytes to the network's input; every field changes pixels, or which images are counted.

    `height`, `width`: of the network's input. `mean`, `std`: of channels scaled to [0, 1].
    `crop`: the largest square in the middle, or none, before the resize. `exif`: whether a stated
    orientation turns the image. `max_bytes`, `max_pixels`: an image beyond them is listed as a
    failure, unread. `decoder`: `NAME@VERSION` of the user's own, or None for ours.
    """

    height: int
    width: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resize: Resize = "clean"
    crop: Crop = "none"
    colour: str = COLOUR_RULE
    exif: Exif = "apply"
    max_bytes: int = 256 * 2**20
    max_pixels: int = 89_478_485
    decoder: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns the fields by name; the decoder only if it is the user's own."""
        data = asdict(self)
        if self.decoder is None:
            del data["decoder"]
        return data


@dataclass(frozen=True)
class Numerics:
    """What moves a float32 count by rounding only; recorded, and compared as a warning.

    In bf16 it moves nearly every activation, so there it is part of the spec.
    """

    device: str
    compiled: bool
    folded: bool
    micro_batch: int
    threads: int
    versions: tuple[tuple[str, str], ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"versions": dict(self.versions)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Numerics:
        return cls(**(data | {"versions": tuple(sorted(data["versions"].items()))}))


@dataclass(frozen=True)
class Spec:
    """Everything that decides what is counted. Equal digests mean comparable DNAs."""

    extractor: str
    weights_sha256: str
    taps: tuple[Tap, ...]
    preprocess: Preprocess
    ranges_digest: str
    bins: int = DEFAULT_BINS
    precision: Precision = "fp32"
    counting: int = COUNTING_RULE
    bf16_numerics: Numerics | None = None

    def __post_init__(self) -> None:
        if self.bins < 2:
            raise UsageError(f"bins is {self.bins}; a histogram needs at least 2")
        if self.bins > MAX_BINS:
            raise UsageError(f"bins is {self.bins}; the most is {MAX_BINS}")
        if self.precision not in ("fp32", "bf16"):
            raise UsageError(f"precision is {self.precision!r}; choose fp32 or bf16")
        if self.preprocess.resize not in ("clean", "fast"):
            raise UsageError(f"resize is {self.preprocess.resize!r}; choose clean or fast")
        if self.preprocess.crop not in ("none", "center"):
            raise UsageError(f"crop is {self.preprocess.crop!r}; choose none or center")
        if self.preprocess.exif not in ("apply", "ignore"):
            raise UsageError(f"exif is {self.preprocess.exif!r}; choose apply or ignore")
        if (self.precision == "bf16") != (self.bf16_numerics is not None):
            raise UsageError("bf16_numerics belongs to a bf16 spec, and only to one")
        names = [tap.name for tap in self.taps]
        if not names or len(set(names)) != len(names):
            raise UsageError(f"taps must be at least one, with distinct names; got {names}")

    @cached_property
    def digest(self) -> str:
        return digest_of("spec", self.to_json())

    @property
    def layers(self) -> tuple[str, ...]:
        return tuple(tap.name for tap in self.taps)

    @property
    def neurons(self) -> int:
        """Neurons of all taps together."""
        return sum(tap.neurons for tap in self.taps)

    @property
    def slices(self) -> list[slice]:
        """Where each layer's neurons stand among all."""
        ends = list(accumulate(tap.neurons for tap in self.taps))
        return [slice(end - tap.neurons, end) for tap, end in zip(self.taps, ends, strict=True)]

    def tap(self, layer: str) -> Tap:
        for tap in self.taps:
            if tap.name == layer:
                return tap
        raise UsageError(f"no layer {layer!r} in {self.extractor}; it has {', '.join(self.layers)}")

    def to_json(self) -> dict[str, Any]:
        data = asdict(self) | {"preprocess": self.preprocess.to_json()}
        if self.bf16_numerics is not None:
            data["bf16_numerics"] = self.bf16_numerics.to_json()
        return cast(dict[str, Any], json.loads(json.dumps(data)))

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Spec:
        """Raises `CorruptFile` where fields are missing or unknown."""
        try:
            rule = dict(data["preprocess"])
            rule |= {"mean": tuple(rule["mean"]), "std": tuple(rule["std"])}
            numerics = data["bf16_numerics"]
            return cls(
                **(
                    data
                    | {
                        "taps": tuple(Tap(**tap) for tap in data["taps"]),
                        "preprocess": Preprocess(**rule),
                        "bf16_numerics": numerics and Numerics.from_json(numerics),
                    }
                )
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise CorruptFile(f"not a spec that this version can read: {error!r}") from error

    def differences(self, other: Spec) -> dict[str, tuple[object, object]]:
        """Fields that differ, dotted, with both values."""
        mine, theirs = _flat(self.to_json()), _flat(other.to_json())
        return {
            name: (mine.get(name), theirs.get(name))
            for name in sorted(mine.keys() | theirs.keys())
            if mine.get(name) != theirs.get(name)
        }

    def require_same(self, other: Spec, mine: str, theirs: str) -> None:
        """Raises `SpecMismatch` naming every differing field with both values."""
        if self.digest == other.digest:
            return
        fields = "; ".join(
            f"{name}: {a!r} against {b!r}" for name, (a, b) in self.differences(other).items()
        )
        raise SpecMismatch(f"{mine} and {theirs} were not made the same way: {fields}")


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


PRODUCTS: tuple[str, ...] = ("histogram", "neuron_gaussian")
"""What every build keeps of an image set; part of a shard's key, not of the spec."""

LAYER_GAUSSIAN = "layer_gaussian"
"""The product kept only when asked for: mean vector and scatter matrix of each layer."""


@dataclass(frozen=True)
class Resources(Options):
    """How fast the work is done.

    `None` means: as the machine or cluster allows. Nothing of it is in a digest.

    Attributes:
        workers: Ray actors; 0 runs in this process, without Ray.
        threads: Network threads in each worker. On a CPU each has one intra-op thread.
        gpus_per_worker: GPUs that a worker takes.
        fetch_ahead: Images read ahead of the decoder.
        decode_seconds: Time limit of one image, after which it is retried in its own process.
        stall_seconds: If no shard finishes for so long, the job ends; a rerun resumes.
    """

    workers: Annotated[
        int | None,
        Option("Ray actors; 0 works in this process, without Ray (default: all cores).", least=0),
    ] = None
    threads: Annotated[
        int | None, Option("Network threads of each worker (default: up to 4).", least=1)
    ] = None
    gpus_per_worker: Annotated[
        float, Option("GPUs that a worker takes; with a fraction, workers share one.", least=0)
    ] = 0.0
    fetch_ahead: int = 64
    decode_seconds: float = 60.0
    stall_seconds: float = 1800.0

    def with_cpus(self, cpus: int) -> Resources:
        """The unset fields, for `cpus` cores: up to 4 threads a worker, as Python's lock allows."""
        threads = self.threads or max(1, min(4, cpus))
        workers = self.workers if self.workers is not None else max(1, cpus // threads)
        return replace(self, workers=workers, threads=threads)


def available_cpus() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
