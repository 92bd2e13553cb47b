"""Compiles a function with numba, as all our kernels are.

>>> @compiled
... def add(a, b):
...     return a + b
"""

from __future__ import annotations

import functools
import hashlib
import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar, cast, overload

from numba import njit
from numba.core.caching import FunctionCache

F = TypeVar("F", bound=Callable[..., Any])

logger = logging.getLogger(__name__)


@overload
def compiled(function: F) -> F: ...
@overload
def compiled(*, fastmath: set[str]) -> Callable[[F], F]: ...
def compiled(function: F | None = None, **options: Any) -> F | Callable[[F], F]:
    """Makes a function a kernel, which is compiled when it is first called.

    The machine code is kept for other processes, beside the module or in the user's cache folder.
    It is made anew when the module has changed, or one that it imports. If nothing can be written,
    as on a read-only disk without a home, each process compiles again.
    Other threads run while a kernel does.

    Args:
        function: The function.
        **options: Other options of numba, such as `fastmath`.

    Returns:
        The kernel.
    """
    if function is None:
        return functools.partial(_compile, **options)
    return _compile(function)


def _compile(function: F, **options: Any) -> F:
    make: Any = functools.partial(njit, nogil=True, error_model="numpy", **options)
    try:
        kernel = make(cache=True)(function)
        kernel._cache = _KeptCode(function)  # type: ignore[no-untyped-call]  # numba's
    except RuntimeError as error:  # numba has no kind of its own for it
        if "cannot cache" not in str(error):
            raise
        logger.info("%s; it is compiled anew in each process", error)
        kernel = make()(function)
    return cast(F, kernel)


class _KeptCode(FunctionCache):
    """The machine code of a kernel, as numba keeps it, for one state of the sources.

    Numba looks at the kernel's own module only. Code of other modules is part of the machine code
    too: their constants, and functions that it calls.
    """

    def _index_key(self, signature: Any, codegen: Any) -> tuple[Any, ...]:
        module = Path(self._py_func.__code__.co_filename)
        key = super()._index_key(signature, codegen)  # type: ignore[no-untyped-call]  # numba's
        return (*key, _digest_of_sources(module))


@functools.cache
def _digest_of_sources(module: Path) -> str:
    """Returns a digest of a module and of all of this package that it imports."""
    waiting, seen = [module], {module}
    for path in waiting:
        new = set(_imported(path)) - seen
        waiting += sorted(new)
        seen |= new
    files = {file for path in seen for file in ([path] if path.is_file() else path.glob("*.py"))}
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(files))).hexdigest()


def _imported(path: Path) -> Iterator[Path]:
    """Yields the modules that a module imports, and the folders of the rooms.

    What a room imports is not looked for.
    """
    if path.is_dir():
        return
    package = Path(__file__).parent
    source = path.read_text(encoding="utf-8")
    for name in re.findall(r"^from pipeline\.([\w.]+) import", source, re.MULTILINE):
        found = package.joinpath(*name.split("."))
        yield found if found.is_dir() else found.with_suffix(".py")
