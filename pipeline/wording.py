"""Words that many messages share: a number of things, a distance, names of options and images.

>>> count_of(1, "image"), count_of(1200, "image"), count_of(0, "match", "matches")
('1 image', '1,200 images', '0 matches')
>>> in_bins(1), in_bins(1.00001), in_bins(2.34567), in_bins(0.0, 3)
('1 bin', '1 bin', '2.346 bins', '0 bins')
>>> option("max_failures"), option("bins", 100)
('`max_failures`', '`bins=100`')
>>> with options_as_flags():
...     option("max_failures"), option("bins", 100), option("error_bars", False)
('--max-failures', '--bins 100', '--no-error-bars')
>>> with options_as_flags(), options_as_keys("datasets.yaml", ["max_failures", "bins"]):
...     option("max_failures"), option("bins", 100), option("workers", 0)
('`max_failures` in datasets.yaml', '`bins: 100` in datasets.yaml', '--workers 0')
>>> spelled("file:///photos/my%20cat.jpg"), spelled("s3://photos/a.tar", "cat.jpg")
('/photos/my cat.jpg', 's3://photos/a.tar::cat.jpg')
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal
from difflib import get_close_matches
from urllib.parse import unquote_to_bytes

from pipeline.errors import printable

LOCAL = "file://"
"""How the uris of local files begin."""

NAMED = 3
"""How many items a list in a sentence names if it counts the others. One more is named, too."""

_styles: list[bool | tuple[str, Collection[str]]] = [False]
"""Whether options are named as on the command line, or the file that has some, and which. The last
style that has an option holds."""


def count_of(number: int, one: str, many: str = "") -> str:
    """Writes a number of things, with the noun in the singular or the plural.

    Args:
        number: How many there are.
        one: What one of them is called.
        many: What several are called, if that is not `one` with an s.

    Returns:
        Text such as `1 image` or `1,200 images`.
    """
    return f"{number:,} {one if number == 1 else many or f'{one}s'}"


def in_bins(distance: float, digits: int = 4) -> str:
    """Writes a distance with so many digits, such as `1 bin` or `2.346 bins`."""
    text = f"{distance:.{digits}g}"
    return f"{text} bin" if text == "1" else f"{text} bins"


def digits_that_tell(value: float, least: int = 4) -> int:
    """Finds how many digits tell a number from all others.

    >>> digits_that_tell(0.5), digits_that_tell(1.0001e-05)
    (4, 5)

    Args:
        value: The number.
        least: At least so many are returned.

    Returns:
        The number of digits: the fewest that are read back as the same number.
    """
    return next((n for n in range(least, 17) if float(f"{value:.{n}g}") == value), 17)


def in_percent(share: float) -> str:
    """Writes a share in percent, with all digits that it has.

    >>> in_percent(0.07), in_percent(0.123456789)
    ('7%', '12.3456789%')

    Args:
        share: The share, from 0 to 1.

    Returns:
        The text.
    """
    exact = 100 * Decimal(repr(share))
    text = f"{float(exact):g}"
    return f"{text if Decimal(text) == exact else exact.normalize()}%"


def in_units(size: int) -> str:
    """Writes a number of bytes with at least two digits, in decimal units.

    >>> in_units(1), in_units(1500), in_units(9_960), in_units(999_950)
    ('1 byte', '1.5 kB', '10 kB', '1.0 MB')

    Args:
        size: The number.

    Returns:
        The text.
    """
    if size < 1000:
        return count_of(size, "byte")
    amount, unit = float(size), ""
    for larger in ("kB", "MB", "GB", "TB"):
        if unit and amount < 999.5:  # else it would be written as 1,000
            break
        amount, unit = amount / 1000, larger
    return f"{amount:.1f} {unit}" if amount < 9.95 else f"{amount:,.0f} {unit}"


def some_of(names: Sequence[str], count: int | None = None) -> str:
    """Writes a list of names in short.

    Args:
        names: The names, or the first `NAMED` and one more.
        count: How many there are; None if all are given.

    Returns:
        The first names, and how many more there are.
    """
    count = len(names) if count is None else count
    if count < 2:
        return "".join(names)
    if count <= NAMED + 1:
        return f"{', '.join(names[:-1])} and {names[-1]}"
    return f"{', '.join(names[:NAMED])} and {count - NAMED:,} more"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Asks at the end of an error whether a name that is known was meant.

    >>> did_you_mean("phtos", ["photos", "cams"]), did_you_mean("x", ["photos"])
    ('. Did you mean photos?', '')

    Args:
        name: The name that is not known.
        known: The names that are.

    Returns:
        The question, to be added to the error; empty if no name is near.
    """
    near = get_close_matches(name, sorted(known), 1)
    return f". Did you mean {near[0]}?" if near else ""


def option(name: str, value: object = None) -> str:
    """Names an option as the caller writes it.

    Args:
        name: The option's name in Python.
        value: A value to write with it, or a list of values; None for the name alone.

    Returns:
        The name, or `bins=100`, in backticks in Python; `--max-failures` or `--bins 100` in a
        command; with the file that has the option, if a command read it there.
    """
    style = next(of for of in reversed(_styles) if isinstance(of, bool) or name in of[1])
    if isinstance(style, tuple):
        file, _ = style
        return f"`{name}` in {file}" if value is None else f"`{name}: {value}` in {file}"
    if not style:
        return f"`{name}`" if value is None else f"`{name}={value!r}`"
    flag = name.replace("_", "-")
    if value is None or value is True:
        return f"--{flag}"
    if value is False:
        return f"--no-{flag}"
    if isinstance(value, list):
        return " ".join(f"--{flag} {each}" for each in value)
    return f"--{flag} {value or repr(value)}"


@contextmanager
def options_as_flags() -> Iterator[None]:
    """Makes `option` name options as on the command line, for the whole process."""
    _styles.append(True)
    try:
        yield
    finally:
        _styles.pop()


@contextmanager
def options_as_keys(file: str, names: Collection[str]) -> Iterator[None]:
    """Makes `option` name options as keys of a file that a command reads, for the whole process.

    Args:
        file: The file's name.
        names: The options that are keys there. Others are named as outside the block.

    Yields:
        Nothing.
    """
    _styles.append((file, names))
    try:
        yield
    finally:
        _styles.pop()


def readable(uri: str) -> str:
    """Gives the uri as people write it: a plain path for a `file://` uri."""
    if uri.startswith(LOCAL):
        path = os.fsdecode(unquote_to_bytes(uri.removeprefix(LOCAL)))
        return path.encode("utf-8", "backslashreplace").decode()
    return uri


def spelled(uri: str, member: str = "") -> str:
    """Gives the name of an image as people read it, safe to print on a terminal.

    Args:
        uri: The object that holds the image.
        member: The name of the image inside it, if it is an archive.

    Returns:
        `uri::member`, with what would command a terminal written out.
    """
    return printable(f"{readable(uri)}{'::' + member if member else ''}")
