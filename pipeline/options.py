"""Declares an option once: a dataclass's fields carry their help and their limits.

Python, the command line (`jobs.shell`) and `datasets.yaml` (`pipeline.refreshing`) all read them.

    >>> @dataclass(frozen=True)
    ... class Histogram(Options):
    ...     bins: Annotated[int, Option("Bins of each neuron's histogram.", least=2)] = 1000
    >>> [(field.name, field.default, field.option.help) for field in options_of(Histogram)]
    [('bins', 1000, "Bins of each neuron's histogram.")]
    >>> Histogram(bins=1)
    Traceback (most recent call last):
    pipeline.errors.UsageError: bins is 1; it must be at least 2
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from functools import cache
from math import inf
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from pipeline.errors import UsageError

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Option:
    """What a field's type does not say.

    Attributes:
        help: For people, in a sentence or two.
        least: The smallest value that is accepted.
        most: The largest value that is accepted.
        argument: Whether the command line takes it by its place, not by its name.
        numeral: Whether a whole number may be given for the text.
        flag: Its name on the command line, if that is not the field's.
        metavar: What the command line's help writes for its value, if not the type.
        share: Whether a number below 1 is a share of all, and any other a whole number.
        python_only: Whether it is checked, and no command, file or help has it.
    """

    help: str
    least: float | None = None
    most: float | None = None
    argument: bool = False
    numeral: bool = False
    flag: str = ""
    metavar: str | None = None
    share: bool = False
    python_only: bool = False

    def problem(self, value: float) -> str:
        """Says what a value must be that is outside the limits; empty if it is within them."""
        if self.least is not None and not value >= self.least:
            return f"it must be at least {self.least:,}"
        if self.most is not None and not value <= self.most:
            return f"it must be at most {self.most:,}"
        if self.share and 1 < value < inf and value % 1:
            return "it must be a fraction below 1, or a whole number"
        return ""

    def require(self, name: str, value: float) -> None:
        """Refuses a value outside the limits, for functions that are given one without `Options`.

        Args:
            name: The option's name.
            value: Its value.

        Raises:
            UsageError: The value is outside.
        """
        if problem := self.problem(value):
            raise UsageError(f"{name} is {value!r}; {problem}")


@dataclass(frozen=True)
class Field:
    """One option as it was declared.

    Attributes:
        name: The field's name; `shard_images` is `--shard-images` on the command line.
        kind: Its type, without what `Annotated` adds, as `int | None`.
        default: Its default; `dataclasses.MISSING` if it must be given.
        option: Its help and limits.
        group: The heading of the options that it was declared with.
    """

    name: str
    kind: Any
    default: Any
    option: Option
    group: str

    @property
    def required(self) -> bool:
        """Whether a value must be given."""
        return self.default is MISSING

    @property
    def kinds(self) -> tuple[Any, ...]:
        """The types that the value may have: `(int, NoneType)` for `int | None`."""
        return get_args(self.kind) if isinstance(self.kind, UnionType) else (self.kind,)

    @property
    def choices(self) -> tuple[str, ...]:
        """The values to choose from; empty if any value of the type will do."""
        return get_args(self.kind) if get_origin(self.kind) is Literal else ()

    def accepted(self, value: Any) -> Any:
        """Returns the value as it is kept.

        Raises:
            ValueError: The value is not allowed. The message says what is, as in "it must be at
                least 2".
        """
        if value is None and NoneType in self.kinds:
            return None
        if self.choices:
            if value not in self.choices:
                raise ValueError(f"choose {' or '.join(self.choices)}")
            return value
        whole = isinstance(value, int) and not isinstance(value, bool)
        if self.option.numeral and whole:
            return str(value)
        wanted = [kind for kind in _WANTED if kind in self.kinds]
        if wanted and not any(_is_of(value, kind) for kind in wanted):
            raise ValueError(f"it must be {' or '.join(_WANTED[kind] for kind in wanted)}")
        if isinstance(value, str) and any(get_origin(kind) is Sequence for kind in self.kinds):
            raise ValueError("it must be a list")
        if problem := self.option.problem(value):
            raise ValueError(problem)
        return value


_WANTED: Mapping[type, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
}


def _is_of(value: Any, kind: type) -> bool:
    """Tells whether a value is of a type, where a whole number may stand for a fraction."""
    if kind in (int, float) and isinstance(value, int):
        return not isinstance(value, bool)
    return isinstance(value, kind)


class Options:
    """Base of a frozen dataclass whose fields are checked by what their `Option` says."""

    def __post_init__(self) -> None:
        model: type = type(self)
        for field in _declared(model):
            value = getattr(self, field.name)
            try:
                object.__setattr__(self, field.name, field.accepted(value))
            except ValueError as error:
                raise UsageError(f"{field.name} is {value!r}; {error}") from error


def options_of(model: type) -> tuple[Field, ...]:
    """Returns the options of a dataclass: its own first, then those of each base, in their order.

    Fields without an `Option` are left out, and those that only Python can set.
    """
    return tuple(field for field in _declared(model) if not field.option.python_only)


@cache
def _declared(model: type) -> tuple[Field, ...]:
    """Returns the options of a dataclass, those too that only Python can set."""
    hints = get_type_hints(model, include_extras=True)
    known = {field.name: field for field in fields(model)}
    found = {}
    for owner in model.__mro__:
        for name in inspect.get_annotations(owner):
            marks = getattr(hints.get(name), "__metadata__", ())
            option = next((mark for mark in marks if isinstance(mark, Option)), None)
            if option is not None and name in known and name not in found:
                heading = (inspect.getdoc(owner) or "").partition("\n")[0].rstrip(".")
                kind = get_args(hints[name])[0]
                found[name] = Field(name, kind, known[name].default, option, heading)
    return tuple(found.values())


def shared_values(source: Options, target: type) -> dict[str, Any]:
    """Returns the values of the options of `source` that `target` declares too, by their names."""
    mine: type = type(source)
    there = {field.name for field in options_of(target)}
    shared = (field.name for field in options_of(mine) if field.name in there)
    return {name: getattr(source, name) for name in shared}


def takes_options(model: type, names: Collection[str] | None = None) -> Callable[[F], F]:
    """Makes a function say which options its `**options` are.

    Type checkers know them from a `TypedDict`. `help` and notebooks show a function's signature
    and docstring, so the options are added to both, with their defaults and help.

    Args:
        model: The dataclass of the options.
        names: The options that the function takes; None for all.

    Returns:
        A decorator, which returns the function itself.
    """
    taken = [field for field in options_of(model) if names is None or field.name in names]
    kind = inspect.Parameter.KEYWORD_ONLY

    def told(function: F) -> F:
        signature = inspect.signature(function)
        shown = [of for of in signature.parameters.values() if of.kind is not of.VAR_KEYWORD]
        text = [inspect.getdoc(function) or "", "", "Options:"]
        for field in taken:
            text.append(f"    {field.name}: {field.option.help}")
            shown.append(
                inspect.Parameter(field.name, kind, default=field.default, annotation=field.kind)
            )
        function.__signature__ = signature.replace(parameters=shown)  # type: ignore[attr-defined]  # help reads it
        function.__doc__ = "\n".join(text)
        return function

    return told
