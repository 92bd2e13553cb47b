"""Finds by name what users add: networks and image decoders of their own.

A program adds one by a call. An installed distribution adds one by an entry point: a function that
makes this call, and that runs when the name is looked up for the first time. Worker processes need
neither: they are sent `module:function`, and import it.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from operator import attrgetter
from typing import Any, Generic, TypeVar

from pipeline.errors import UsageError

T = TypeVar("T")

PLUGIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class Registry(Generic[T]):
    """Holds what users add of one kind, by name; safe to use from several threads.

    Attributes:
        group: The group of entry points that add more of this kind.
        kind: What one of them is called in messages, such as "network".
    """

    def __init__(self, group: str, kind: str) -> None:
        self.group = group
        self.kind = kind
        self._values: dict[str, T] = {}
        self._lock = threading.RLock()

    def add(self, name: str, value: T) -> None:
        """Makes a name stand for a value. Adding an equal value again changes nothing.

        Raises:
            UsageError: If the name has unusual characters, or stands for another value already.
        """
        if not PLUGIN_NAME.fullmatch(name):
            raise UsageError(
                f"{name!r} cannot be the name of a {self.kind}; use letters, digits, '.', '_' and "
                "'-', and begin with a letter or a digit"
            )
        with self._lock:
            held = self._values.setdefault(name, value)
        if held != value:
            raise UsageError(
                f"the {self.kind} {name!r} is registered already, as {held}; register {value} by "
                "another name"
            )

    def find(self, name: str) -> T | None:
        """Returns what the name stands for, or None; loads the name's entry point if need be.

        Raises:
            UsageError: If the entry point cannot be loaded or does not register the name, or if
                two distributions have one of this name.
        """
        with self._lock:
            if name not in self._values:
                found = sorted(entry_points(group=self.group, name=name), key=attrgetter("value"))
                if len({point.value for point in found}) > 1:
                    raise UsageError(
                        f"several installed distributions have a {self.kind} {name!r}: "
                        f"{' and '.join(map(_origin, found))}; uninstall all but one"
                    )
                if found:
                    self._load(found[0])
            return self._values.get(name)

    def names(self) -> list[str]:
        """Returns all names in order, those of entry points that are not loaded too."""
        return sorted(self._values.keys() | {p.name for p in entry_points(group=self.group)})

    def _load(self, point: EntryPoint) -> None:
        about = f"the {self.kind} {point.name!r} of {_origin(point)}"
        try:
            register = point.load()
            register()
        except UsageError:
            raise
        except Exception as error:  # the code of others raises anything
            raise UsageError(f"{about} cannot be loaded: {error!r}") from error
        if point.name not in self._values:
            raise UsageError(
                f"{about} was loaded, but it did not register {point.name!r}: the function must "
                "register the name that its entry point has"
            )


def _origin(point: EntryPoint) -> str:
    return f"{point.dist.name if point.dist else 'an unknown distribution'} ({point.value})"


def reference_to(function: Callable[..., Any], what: str) -> str:
    """Returns `module:name`, by which any process can import the function or class.

    Args:
        function: A function or class at the top level of a module, or a static or class method of
            such a class.
        what: What it does, for the message of an error.

    Raises:
        UsageError: If other processes could not import it.
    """
    module = getattr(function, "__module__", None)
    path = getattr(function, "__qualname__", None)
    if module == "__main__":
        raise UsageError(
            f"{what}: {path} is defined in the program that runs (__main__), which worker "
            "processes cannot import. Put it into a module, such as own_network.py beside the "
            "program, and import it from there; or install it as a package"
        )
    try:
        importable = attrgetter(path)(import_module(module)) == function  # type: ignore[arg-type]  # may be None
    except (ImportError, AttributeError, TypeError):
        importable = False
    if not importable:
        raise UsageError(
            f"{what}: worker processes cannot import {path or function!r} by its name, as it is a "
            "lambda, a partial, a method of an object, or defined inside a function. Define it by "
            "`def` or `class` at the top level of a module"
        )
    return f"{module}:{path}"


def imported(reference: str) -> Any:
    """Returns the function or class that `reference_to` named.

    Raises:
        UsageError: If this process cannot import it.
    """
    module, _, path = reference.partition(":")
    try:
        return attrgetter(path)(import_module(module))
    except Exception as error:  # a module of the user's raises anything
        raise UsageError(
            f"{reference} cannot be imported here: {error!r}. Every machine that works on the "
            "build needs the module: install its package there, or put it on PYTHONPATH"
        ) from error
