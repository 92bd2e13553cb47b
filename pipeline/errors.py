"""Every error that this package raises on purpose.

    VdnaError                exit 1   the root: catch this to catch them all
    ├── UsageError           exit 2   an argument or a setting is wrong: mend the call
    ├── SourceError                   the images named are missing, none, or changed while read
    │   └── NoBucket                  ... as is the bucket that they should be in
    ├── BadImage                      one image is unreadable by its own fault; never ends a job
    ├── StorageError                  a store or a disk does not do what was asked of it
    │   ├── TooManyBytes              an object is longer than whoever reads it takes
    │   └── TransientError            ... after all retries; the same command goes on from there
    ├── CorruptFile                   a stored file is torn, lies, or has an unknown version
    ├── NotFound                      there is no such dataset, spec or version, or no such job
    ├── Conflict                      another job changed the same dataset meanwhile, or does this
    ├── SpecMismatch                  two DNAs that must not be added or compared, and why
    ├── OverlapError                  a sum that would count a shard twice
    ├── ConservationError             a sum that does not add up to the images counted
    ├── UnexpectedError               what no one foresaw: a bug, a broken device, a full memory
    ├── GateError            exit 3   a stated limit says no; what was computed is kept
    └── DeliveryError        exit 4   all was done, and its outcome could not be handed over

Messages name the culprit, the value, and what to do; they hold no secret, whatever they quote.
"""

from __future__ import annotations

import os
import re
import traceback
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

if TYPE_CHECKING:
    from pydantic import ValidationError

QUERY_VARIABLE = "VDNA_QUERY_"
"""How the names of variables begin whose values are sent in queries. Their values are secret."""

_SECRET_NAME = (
    r"[\w.%\[\]-]*(?:signature|sig|token|secret|passw(?:or)?d|passphrase|pwd|jwt|auth|hmac"
    r"|(?:api|access|account|private)[_-]?key(?:[_-]?id)?)"
)

_VALUE = r"(?!\$\{)[^\s'\"&;,<>)}…]+"

_SECRETS = (
    # scheme://user:password@host; a password may hold unescaped slashes, as AWS's often do.
    (r"(\b[a-z][a-z0-9+.-]*://)[^/\s'\"<>@]*:(?!\d+[/?#])[^\s'\"<>]*@", r"\1…@"),
    (r"(\b[a-z][a-z0-9+.-]*://)[^/\s'\"<>]*@", r"\1…@"),
    # Headers as clients print them, to the end of the quoted value or of the line.
    (
        r"\b((?:proxy-)?authorization|(?:set-)?cookie|x-amz-security-token|x-api-key)"
        r"(['\"]?\s*[:=,](?!\s*…)\s*)(?:'[^'\n]*'|\"[^\"\n]*\"|[^\n'\"]+)",
        r"\1\2…",
    ),
    (r"\b(bearer|basic)\s+[\w+/=.~-]{8,}", r"\1 …"),
    # ?signature=…, secret_key: …, and "password is '…'"
    (rf"([?&;,{{\s'\"]|^)({_SECRET_NAME}['\"]?\s*[=:]\s*['\"]?){_VALUE}", r"\1\2…"),
    (rf"([?&;,{{\s'\"]|^)({_SECRET_NAME}\sis\s['\"]){_VALUE}", r"\1\2…"),
    (rf"([?&]x-(?:amz|goog)-credential=){_VALUE}", r"\1…"),
    (r"\bhf_[A-Za-z0-9]{16,}", "hf_…"),
)

# The query or fragment of a url. In the key of an object, a `?` or `#` may stand for itself.
_QUERY = re.compile(
    r"((?:\bhttps?://[^\s'\"<>?#]*|\b[a-z][a-z0-9+.-]*://[^\s'\"<>]*?(?=[?#][^\s'\"<>/?#]*=))[?#])"
    r"([^\s'\"<>]*)",
    re.IGNORECASE,
)
_PARAMETER = re.compile(r"([^=&;#]+)(=?)([^&;#]*)")

# What may be shown of a query: numbers, such as that of an image, and references to variables.
_PLAIN = re.compile(r"\d{1,12}|(?:\$\{\w+\})+|…?")

_PATTERNS = [(re.compile(pattern, re.IGNORECASE), shown) for pattern, shown in _SECRETS]


def redact(text: str) -> str:
    """Takes out what looks like a secret: signatures, passwords, tokens, headers.

    Every error of this package goes through here, with what it quotes of other programs.

    Args:
        text: The text.

    Returns:
        The text, with `…` in place of each secret.
    """
    for variable, value in os.environ.items():
        if variable.startswith(QUERY_VARIABLE) and value:
            text = text.replace(value, "…").replace(quote(value, safe=""), "…")
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return _QUERY.sub(lambda url: url[1] + _PARAMETER.sub(_shown, url[2]), text)


def redact_all(data: Any, plain: type[str] | tuple[()] = ()) -> Any:
    """Takes out what looks like a secret of every text in data, as `redact` does.

    Args:
        data: A text, or mappings and lists that hold texts. Other values stay as they are.
        plain: A kind of text that is known to hold no secret, which is not searched.

    Returns:
        The data, with a list in place of each tuple.
    """
    match data:
        case str():
            return data if isinstance(data, plain) else redact(data)
        case Mapping():
            return {key: redact_all(value, plain) for key, value in data.items()}
        case list() | tuple():
            return [redact_all(value, plain) for value in data]
    return data


def _shown(parameter: re.Match[str]) -> str:
    name, equals, value = parameter.groups()
    if not equals:
        return name if _PLAIN.fullmatch(name) else "…"
    return f"{name}={value if _PLAIN.fullmatch(value) else '…'}"


def looks_secret(name: str, value: str) -> bool:
    """Tells whether a parameter of a query holds a secret by its name, and not a reference."""
    secret = re.fullmatch(_SECRET_NAME, unquote(name), re.IGNORECASE)
    return secret is not None and not re.fullmatch(r"(?:\$\{\w+\})+", value)


def printable(text: str) -> str:
    """Returns the text in one line, with what would command a terminal written out."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def as_one_line(text: str) -> str:
    """Returns a message of several lines in one, for places that hold no more; see `printable`."""
    return printable(" ".join(line.strip() for line in text.split("\n")))


_WANTED = {
    "bool_type": "it must be true or false",
    "dataclass_type": "it must have fields with names",
    "dict_type": "it must have fields with names",
    "extra_forbidden": "there is no such field",
    "finite_number": "it must be finite",
    "float_parsing": "it must be a number",
    "float_type": "it must be a number",
    "greater_than": "it must be more than {gt:g}",
    "greater_than_equal": "it must be at least {ge:g}",
    "int_from_float": "it must be a whole number",
    "int_parsing": "it must be a whole number",
    "int_type": "it must be a whole number",
    "invalid_key": "a field's name must be text, and not a number or a date",
    "is_instance_of": "it must be a list",
    "json_invalid": "it is not JSON",
    "less_than": "it must be less than {lt:g}",
    "less_than_equal": "it must be at most {le:g}",
    "list_type": "it must be a list",
    "literal_error": "it must be {expected}",
    "model_type": "it must have fields with names",
    "string_pattern_mismatch": "it must be written as the pattern {pattern} says",
    "string_too_short": "it must have characters, at least {min_length}",
    "string_type": "it must be text",
    "too_short": "it must have entries, at least {min_length}",
    "tuple_type": "it must be a list",
    "unexpected_keyword_argument": "there is no such field",
}
"""What a field must be, by the names that pydantic gives to what is wrong. It has words of its own
for the others."""


def wrong_fields(error: ValidationError, most: int = 8) -> str:
    """Says which fields pydantic refused, for the message of an error of ours.

    Args:
        error: What pydantic raised.
        most: How many fields to name.

    Returns:
        Each field with its value and what it must be, such as
        `gate.0.max is -1: it must be at least 0`.
    """
    said = []
    for one in error.errors()[:most]:
        field = ".".join(map(str, one["loc"])) or "the whole"
        value = shortened(one["input"])
        plain = _WANTED.get(one["type"])
        wanted = plain.format(**one.get("ctx", {})) if plain else one["msg"]
        wanted = wanted.removeprefix("Value error, ")
        missing = one["type"] == "missing"
        said.append(
            f"{field} is missing in {value}" if missing else f"{field} is {value}: {wanted}"
        )
    if error.error_count() > most:
        said.append(f"and {error.error_count() - most} more")
    return "; ".join(said)


def shortened(value: object, longest: int = 200) -> str:
    """Returns the `repr` of a value, cut after so many characters."""
    text = repr(value)
    return text if len(text) <= longest else f"{text[:longest]}…"


def first_rows(rows: Sequence[Mapping[str, object]], most: int = 3) -> str:
    """Shows the first rows of a table, for the end of an error's message.

    Args:
        rows: Rows by column. Only text, numbers and the like are shown.
        most: How many rows to show.

    Returns:
        A sentence with the rows, or nothing if there are none.
    """
    shown = [
        shortened({name: value for name, value in row.items() if not _is_long(value)})
        for row in rows[:most]
    ]
    return f". Its first rows: {' '.join(shown)}" if shown else ""


def _is_long(value: object) -> bool:
    """Tells whether a value holds bytes, such as an image, which would say nothing."""
    if isinstance(value, Mapping):
        return any(map(_is_long, value.values()))
    return isinstance(value, bytes | bytearray)


class VdnaError(Exception):
    """Root of the tree. `exit_code` is what the command line exits with.

    `parts` are the errors that this one was made of (see `joined_errors`); none of most errors.
    """

    exit_code = 1
    parts: tuple[VdnaError, ...] = ()

    def __init__(self, message: str = "") -> None:
        super().__init__(redact(message))


class UsageError(VdnaError):
    """An argument or setting is wrong; nothing was computed."""

    exit_code = 2


class SourceError(VdnaError):
    """The source of images is missing, empty, or changed between listing and reading."""


class NoBucket(SourceError):
    """The store has no such bucket: nothing is there, nor can be put there."""


class BadImage(VdnaError):
    """One image cannot be read through its own fault.

    `reason` is one word of a closed list (see `pipeline.images.REASONS`), `detail` is for people.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type[BadImage], tuple[str, str]]:
        return (BadImage, (self.reason, self.detail))


class StorageError(VdnaError):
    """Storage refused, or does not keep a property that exactness rests on."""


class TooManyBytes(StorageError):
    """An object is longer than whoever reads it takes. What is beyond the limit was not read."""


class TransientError(StorageError):
    """Storage did not answer properly, retries included. Nothing was skipped; a rerun resumes."""


class CorruptFile(VdnaError):
    """A stored file is torn, lies about its content, or has an unknown format version."""


class NotFound(VdnaError):
    """The catalogue has no such dataset, spec, or version; or the cluster has no such job."""


class Conflict(VdnaError):
    """Another job committed a version of the dataset since this one looked, or does the same."""


class SpecMismatch(VdnaError):
    """Two DNAs that were not made the same way."""


class OverlapError(VdnaError):
    """The same shard would be counted twice."""


class ConservationError(VdnaError):
    """Counts do not add up to images x positions, or images to candidates."""


class UnexpectedError(VdnaError):
    """Something that this package did not foresee: a bug, a broken device, a full memory.

    Attributes:
        details: The traceback, without secrets.
    """

    def __init__(self, message: str, details: str = "") -> None:
        super().__init__(message)
        self.details = redact(details)

    def __reduce__(self) -> tuple[type[UnexpectedError], tuple[str, str]]:
        return (UnexpectedError, (str(self), self.details))


def known_error(error: Exception) -> VdnaError:
    """Returns an error of this package: the one that was raised, or one that stands for it."""
    if isinstance(error, VdnaError):
        return error
    last = traceback.extract_tb(error.__traceback__)[-1:]
    where = "".join(f" (in {os.path.basename(line.filename)}:{line.lineno})" for line in last)
    name = type(error).__name__
    details = "".join(traceback.format_exception(error))
    return UnexpectedError(f"unexpected {name}: {error}{where}", details)


class GateError(VdnaError):
    """A gate said no (too many failures, a drift limit). What was computed is kept."""

    exit_code = 3


class DeliveryError(VdnaError):
    """All was done and is kept, but its outcome could not be written or sent where it should go."""

    exit_code = 4


def reworded(error: VdnaError, message: str) -> VdnaError:
    """Returns an error of the same kind and details with another message."""
    if isinstance(error, UnexpectedError):
        return UnexpectedError(message, error.details)
    return type(error)(message)


def joined_errors(problems: Sequence[VdnaError]) -> VdnaError | None:
    """Makes one error of several.

    Args:
        problems: What went wrong, in the order to tell it in.

    Returns:
        An error with all messages, each of them once, of the first kind that is not a gate's, if
        there is such a kind. The errors are its `parts`. None if nothing went wrong.
    """
    if len(problems) < 2:
        return problems[0] if problems else None
    worst = next((each for each in problems if not isinstance(each, GateError)), problems[0])
    joined = reworded(worst, "\n".join(dict.fromkeys(map(str, problems))))
    joined.__cause__ = worst
    joined.parts = tuple(problems)
    return joined
