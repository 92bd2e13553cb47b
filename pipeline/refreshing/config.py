"""`datasets.yaml`: the datasets that a scheduled refresh keeps up to date, validated.

>>> load_config("datasets.yaml").requests()[0].name          # doctest: +SKIP
"""

from __future__ import annotations

from collections import Counter
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline import storage
from pipeline.building import DEFAULT_MAX_FAILURES, Request
from pipeline.comparing import ALL
from pipeline.errors import UsageError

MAX_BYTES = 2**19

MAX_NODES = 100_000
"""Of the document with its aliases written out: each may repeat all that stands above it."""


class _Loader(yaml.SafeLoader):
    """Plain data only, of a bounded size, and no key twice."""

    def get_single_node(self) -> yaml.Node | None:
        node: yaml.Node | None = super().get_single_node()
        if node is not None and _size(node, {}) >= MAX_NODES:
            raise yaml.composer.ComposerError(
                problem=f"it holds {MAX_NODES} values or more, its aliases (*) written out",
                problem_mark=node.start_mark,
            )
        return node


def _size(node: yaml.Node, known: dict[int, int]) -> int:
    """The nodes that there are once aliases are followed, without following them twice."""
    if id(node) not in known:
        known[id(node)] = MAX_NODES  # of one that holds itself
        parts: list[yaml.Node] = []
        if isinstance(node, yaml.SequenceNode):
            parts = node.value
        elif isinstance(node, yaml.MappingNode):
            _require_distinct([key for key, _ in node.value])
            parts = [part for pair in node.value for part in pair]
        known[id(node)] = min(MAX_NODES, 1 + sum(_size(part, known) for part in parts))
    return known[id(node)]


def _require_distinct(keys: list[yaml.Node]) -> None:
    """YAML's own loader takes the last of two in silence."""
    first: dict[tuple[str, str], yaml.Node] = {}
    for key in keys:
        seen = first.setdefault((key.tag, str(key.value)), key)
        if seen is not key:
            raise yaml.constructor.ConstructorError(
                problem=f"the key {key.value!r} stands there twice, first in line "
                f"{seen.start_mark.line + 1}",
                problem_mark=key.start_mark,
            )


class Settings(BaseModel):
    """What a dataset's entry may say beside its name and source, and what `defaults` may."""

    model_config = ConfigDict(extra="forbid", strict=True)

    extractor: str = "efficientnet_lite0"
    weights: str | None = None
    bins: int = Field(default=1000, ge=2)
    precision: Literal["fp32", "bf16"] = "fp32"
    ranges: str | None = None
    resize: Literal["clean", "fast"] = "clean"
    exif: Literal["apply", "ignore"] = "apply"
    crop: Literal["none", "center"] = "none"
    taps: str | None = None
    limit: int | None = Field(default=None, ge=1)
    include: str | None = None
    exclude: str | None = None
    group_by: str | int | None = None
    image_column: str | None = None
    max_failures: float | int = Field(default=DEFAULT_MAX_FAILURES, ge=0)
    shard_images: int | None = Field(default=None, ge=1)
    layer_gaussian: bool = False
    exemplars: int | None = Field(default=None, ge=0)
    exemplar_taps: str | None = None
    by: str | int | None = None


class Dataset(Settings):
    name: str
    source: str


class Bound(BaseModel):
    """Of the gate: how far, in bins, two datasets may surely be apart; see `pipeline.gate`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    a: str
    b: str
    lens: str | None = None
    layer: str = ALL
    max: float = Field(ge=0, allow_inf_nan=False)

    def __str__(self) -> str:
        return f"gate {self.model_dump(exclude_unset=True)}"


class Config(BaseModel):
    """`catalogue` may be left to `--catalogue` or VDNA_CATALOGUE."""

    model_config = ConfigDict(extra="forbid", strict=True)

    catalogue: str | None = None
    defaults: Settings = Settings()
    datasets: list[Dataset] = Field(min_length=1)
    gate: list[Bound] = []

    def requests(self) -> list[Request]:
        """One request a dataset: its own settings over the defaults."""
        defaults = self.defaults.model_dump(exclude_unset=True)
        requests = []
        for dataset in self.datasets:
            values = defaults | dataset.model_dump(exclude_unset=True)
            for setting in ("group_by", "by"):
                if values.get(setting) is not None:
                    values[setting] = str(values[setting])
            requests.append(Request(**values))
        return requests


def load_config(path: str) -> Config:
    """Raises `UsageError` naming the file, the field and the value that is wrong."""
    text = storage.read_range(storage.canonical(path), 0, MAX_BYTES + 1)
    if len(text) > MAX_BYTES:
        raise UsageError(f"{path} is larger than {MAX_BYTES} bytes; split it into several")
    try:
        data = yaml.load(text, _Loader)
    except RecursionError as error:
        raise UsageError(f"{path} is nested too deeply") from error
    except (yaml.YAMLError, ValueError, KeyError, AttributeError) as error:
        # The others come of numbers, dates and truths that are none, under a tag that says so.
        raise UsageError(f"{path} is not YAML: {_told(error)}") from error
    try:
        config = Config.model_validate(data)
    except ValidationError as error:
        wrong = "; ".join(
            f"{'.'.join(map(str, e['loc'])) or 'the whole'} is {_shortened(e['input'])}: {e['msg']}"
            f"{_bound_at(data, e['loc'])}"
            for e in error.errors()
        )
        raise UsageError(f"{path}: {wrong}") from error
    names = Counter(dataset.name for dataset in config.datasets)
    twice = sorted(name for name, count in names.items() if count > 1)
    if twice:
        raise UsageError(f"{path}: datasets.name is given twice: {', '.join(map(repr, twice))}")
    for bound in config.gate:
        if bound.a == bound.b:
            raise UsageError(f"{path}: {bound}: a and b are the same dataset")
    try:
        config.requests()
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error
    return config


def _told(error: Exception) -> str:
    """Without the piece of the file that YAML quotes, which is cut anywhere: in a secret, too."""
    if not isinstance(error, yaml.MarkedYAMLError):
        return str(error)
    mark = error.problem_mark or error.context_mark
    where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    return where + ", ".join(part for part in (error.context, error.problem) if part)


def _bound_at(data: Any, place: tuple[str | int, ...]) -> str:
    """The bound of the gate that a mistake lies in: one of its values says little by itself."""
    match place:
        case ("gate", int() as at, _, *_):
            return f" (in {_shortened(data['gate'][at])})"
    return ""


def _shortened(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}…"
