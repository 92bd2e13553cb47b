"""Turns options that are declared once into parameters of the command line, for Typer."""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from inspect import Parameter
from types import NoneType
from typing import Annotated, Any, get_args, get_origin

import typer

from pipeline.options import Field, Options


def is_options(hint: object) -> bool:
    """Tells whether a type is a class of options."""
    return isinstance(hint, type) and issubclass(hint, Options)


def on_the_command_line(field: Field) -> Parameter:
    """Returns an option as Typer takes it."""
    option, default = field.option, field.default
    if str in field.kinds and isinstance(default, int):
        default = str(default)
    elif isinstance(default, Sequence) and not isinstance(default, str):
        default = list(default)
    info: Any
    if option.argument:
        info = typer.Argument(help=option.help)
    else:
        name = option.flag or f"--{field.name.replace('_', '-')}"
        both = bool in field.kinds and default is not False
        name += f"/--no-{name[2:]}" if both else ""
        info = typer.Option(
            name, help=option.help, metavar=option.metavar, rich_help_panel=field.group
        )
    if field.required:  # one that may be None is left out on the command line
        default = None if NoneType in field.kinds else Parameter.empty
    kind: Any = _command_line_kind(field)
    annotation = Annotated[kind, info]
    return Parameter(field.name, Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _command_line_kind(field: Field) -> Any:
    """Returns the type as Typer takes it: a list for a sequence, text for text or a number."""
    kinds = [
        list.__class_getitem__(get_args(kind)) if get_origin(kind) is Sequence else kind
        for kind in field.kinds
        if kind is not int or str not in field.kinds
    ]
    return functools.reduce(operator.or_, kinds)
