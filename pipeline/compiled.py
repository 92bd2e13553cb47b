"""Compiles a function with numba, as all our kernels are.

>>> @compiled
... def add(a, b):
...     return a + b
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any, TypeVar, cast, overload

from numba import njit

F = TypeVar("F", bound=Callable[..., Any])

logger = logging.getLogger(__name__)


@overload
def compiled(function: F) -> F: ...
@overload
def compiled(*, fastmath: set[str]) -> Callable[[F], F]: ...
def compiled(function: F | None = None, **options: Any) -> F | Callable[[F], F]:
    """Makes a function a kernel, which is compiled when it is first called.

    The machine code is kept for other processes, beside the module or in the user's cache folder.
    If neither can be written, as on a read-only disk without a home, each process compiles again.
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
    except RuntimeError as error:  # numba has no kind of its own for it
        if "cannot cache" not in str(error):
            raise
        logger.info("%s; it is compiled anew in each process", error)
        kernel = make()(function)
    return cast(F, kernel)
