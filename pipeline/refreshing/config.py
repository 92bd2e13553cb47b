"""Reads and checks `datasets.yaml`: the datasets that a scheduled refresh keeps up to date.

>>> load_config("datasets.yaml").requests()[0].name          # doctest: +SKIP
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import Annotated, Any

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    create_model,
)
from pydantic_core import PydanticCustomError

from pipeline import storage
from pipeline.building import Request
from pipeline.catalogue import RetentionOptions
from pipeline.errors import UsageError, shortened, wrong_fields
from pipeline.options import Field as OptionField
from pipeline.options import options_of
from pipeline.refreshing.bound_kinds import AnyBound, Bound
from pipeline.refreshing.webhook import Webhook
from pipeline.wording import option

MAX_BYTES = 2**19
"""The largest file that is read."""

MAX_NODES = 100_000
"""The most values of a document once its aliases are written out."""


_NEEDS_QUOTES = re.compile("character '[@`%]' that cannot start any token")
"""What YAML says of a value such as `@-1` that is not in quotes."""


class _Loader(yaml.SafeLoader):
    """Loads plain data of a bounded size, and refuses a key that is given twice."""

    def get_single_node(self) -> yaml.Node | None:
        """Returns the document, which must not be too large once its aliases are written out."""
        node: yaml.Node | None = super().get_single_node()
        if node is not None and _size(node, {}) >= MAX_NODES:
            raise yaml.composer.ComposerError(
                problem=f"it holds {MAX_NODES} values or more, its aliases (*) written out",
                problem_mark=node.start_mark,
            )
        return node


def _size(node: yaml.Node, known: dict[int, int]) -> int:
    """Counts the nodes that there are once aliases are followed, following each only once."""
    if id(node) not in known:
        known[id(node)] = MAX_NODES  # for a node that holds itself
        parts: list[yaml.Node] = []
        if isinstance(node, yaml.SequenceNode):
            parts = node.value
        elif isinstance(node, yaml.MappingNode):
            _require_distinct([key for key, _ in node.value])
            parts = [part for pair in node.value for part in pair]
        known[id(node)] = min(MAX_NODES, 1 + sum(_size(part, known) for part in parts))
    return known[id(node)]


def _require_distinct(keys: list[yaml.Node]) -> None:
    """Refuses a key that is given twice, of which YAML's loader silently takes the last."""
    first: dict[tuple[str, str], yaml.Node] = {}
    for key in keys:
        seen = first.setdefault((key.tag, str(key.value)), key)
        if seen is not key:
            raise yaml.constructor.ConstructorError(
                problem=f"the key {key.value!r} is given twice, first in line "
                f"{seen.start_mark.line + 1}",
                problem_mark=key.start_mark,
            )


def _entry_field(option: OptionField) -> tuple[Any, Any]:
    """Returns pydantic's declaration of an option of `Request`: type and check, default, help."""

    def checked(value: Any) -> Any:
        try:
            return option.accepted(value)
        except ValueError as error:
            raise PydanticCustomError("option", "{problem}", {"problem": str(error)}) from error

    default = ... if option.required else option.default
    help_ = option.option.help
    return Annotated[option.kind, BeforeValidator(checked)], Field(default, description=help_)


_STRICT = ConfigDict(extra="forbid", strict=True)


def _entry(name: str, options: Iterable[OptionField]) -> Any:
    """Returns a pydantic model that takes these options."""
    fields: dict[str, Any] = {option.name: _entry_field(option) for option in options}
    return create_model(name, __config__=_STRICT, **fields)


class Defaults(_entry("Defaults", (o for o in options_of(Request) if not o.required))):  # type: ignore[misc]  # made at run time
    """What `defaults` may say: the options of `Request` that have a default."""


class DatasetEntry(_entry("DatasetEntry", options_of(Request))):  # type: ignore[misc]  # the same
    """An entry of `datasets`: the options of `Request`."""


class Retention(_entry("Retention", options_of(RetentionOptions))):  # type: ignore[misc]  # the same
    """What `retention` may say: the rules by which `vdna gc --config` keeps versions."""


class Config(BaseModel):
    """The datasets that a refresh keeps up to date, and the gate.

    Attributes:
        catalogue: The url of the catalogue; `--catalogue` comes before it. Commands refuse a
            VDNA_CATALOGUE that is another one.
        defaults: The options of every dataset that does not say otherwise.
        datasets: The datasets.
        gate: The bounds that they must keep.
        webhook: The server that is told what each refresh found; None for none.
        prune: Whether to take datasets out of the catalogue that the file does not name.
        retention: Which versions `vdna gc --config` keeps. A refresh itself removes none.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    catalogue: str | None = None
    defaults: Defaults = Defaults()
    datasets: list[DatasetEntry] = Field(min_length=1)
    gate: list[AnyBound] = []
    webhook: Webhook | None = None
    prune: bool = False
    retention: Retention = Retention()
    _path: str = PrivateAttr("the configuration")

    @property
    def path(self) -> str:
        """The path of the file that it is from, as errors name it."""
        return self._path

    def catalogue_url(self, chosen: str | None = None) -> str:
        """Returns the url of the catalogue.

        Args:
            chosen: A url that comes before the configuration's.

        Returns:
            The url.

        Raises:
            UsageError: If neither is given.
        """
        url = chosen or self.catalogue
        if url is None:
            raise UsageError(
                f"{self.path} names no catalogue; add `catalogue:`, or give the "
                f"{option('catalogue')}"
            )
        return url

    def rules(self) -> RetentionOptions:
        """Returns the rules by which versions are kept."""
        return RetentionOptions(**self.retention.model_dump(exclude_unset=True))

    def requests(self) -> list[Request]:
        """Makes a request for each dataset, of its own settings over the defaults.

        Returns:
            The requests, in the order of the file.

        Raises:
            UsageError: If a setting is wrong.
        """
        defaults = self.defaults.model_dump(exclude_unset=True)
        return [
            Request(**(defaults | dataset.model_dump(exclude_unset=True)))
            for dataset in self.datasets
        ]


def load_config(path: str) -> Config:
    """Reads a configuration.

    Args:
        path: The path or url of the file.

    Returns:
        The configuration.

    Raises:
        UsageError: If the file is not YAML, or a setting is wrong. The message names the file, the
            field and the value.
        SourceError: If there is no such file.
    """
    text = storage.read_range(storage.canonical(path), 0, MAX_BYTES + 1)
    if len(text) > MAX_BYTES:
        raise UsageError(f"{path} is larger than {MAX_BYTES} bytes; split it into several")
    try:
        data = yaml.load(text, _Loader)
    except RecursionError as error:
        raise UsageError(f"{path} is nested too deeply") from error
    except (yaml.YAMLError, ValueError, LookupError, AttributeError) as error:
        # PyYAML raises the others if a tag says number, date or boolean, and the value is none.
        raise UsageError(f"{path} is not YAML: {_problem(error)}") from error
    try:
        config = Config.model_validate(data)
    except ValidationError as error:
        bounds = "".join(dict.fromkeys(_bound_at(data, one["loc"]) for one in error.errors()))
        raise UsageError(f"{path}: {wrong_fields(error)}{bounds}") from error
    config._path = path
    names = Counter(dataset.name for dataset in config.datasets)
    twice = sorted(name for name, count in names.items() if count > 1)
    if twice:
        raise UsageError(f"{path}: datasets.name is given twice: {', '.join(map(repr, twice))}")
    for bound in config.gate:
        if isinstance(bound, Bound) and bound.a == bound.b:
            raise UsageError(f"{path}: {bound}: a and b are the same dataset")
    try:
        config.requests()
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error
    return config


def _problem(error: Exception) -> str:
    """Says what is wrong, without the excerpt that YAML quotes, which may hold half a secret."""
    if not isinstance(error, yaml.MarkedYAMLError):
        return str(error)
    mark = error.problem_mark or error.context_mark
    where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    told = ", ".join(part for part in (error.context, error.problem) if part)
    quotes = "; write the value in quotes" if _NEEDS_QUOTES.search(told) else ""
    return where + told + quotes


def _bound_at(data: Any, place: tuple[str | int, ...]) -> str:
    """Adds what a mistake's value does not say: the bound of the gate, or how a list is written."""
    match place:
        case ("datasets",) if isinstance(data.get("datasets") or {}, dict):
            return "; write a line `- {name: NAME, source: FOLDER}` for each dataset"
        case ("gate", int() as at, _, *_):
            return f" (in {shortened(data['gate'][at])})"
    return ""
