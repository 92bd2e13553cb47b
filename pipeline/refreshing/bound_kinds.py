"""The kinds of bounds that a gate has, as `datasets.yaml` states them.

>>> str(read_bound({"dataset": "photos", "against": "@-1", "max_move": 3}))
"gate {'dataset': 'photos', 'against': '@-1', 'max_move': 3.0}"
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, NoReturn

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from pipeline.building import allowed_failures
from pipeline.catalogue import VersionName, dataset_of
from pipeline.comparing import ALL
from pipeline.errors import UsageError
from pipeline.options import Option
from pipeline.wording import digits_that_tell, in_bins, in_percent

_SHARE = Option("", least=0, share=True)


def _refuse(problem: str) -> NoReturn:
    raise PydanticCustomError("bound", "{problem}", {"problem": problem})


def _whole_name(name: str) -> str:
    if dataset_of(name) != name:
        _refuse("name the dataset without a version; what it has now is judged")
    return name


def _version_mark(text: str) -> str:
    if text[:1] != "@" or text == "@":
        _refuse('it must be an @ and a version, in quotes, such as "@-1" or "@release"')
    try:
        VersionName.parse(f"dataset{text}")
    except UsageError as error:
        _refuse(str(error).removeprefix(f"dataset{text}: "))
    return text


def _share_or_number(value: float) -> float:
    if problem := _SHARE.problem(value):
        _refuse(problem)
    return value


Dataset = Annotated[str, AfterValidator(_whole_name)]
Length = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _AnyKind(BaseModel):
    """What all bounds have: a kind, and the datasets or versions that they are about."""

    model_config = ConfigDict(extra="forbid", strict=True)
    kind: ClassVar[str]

    @property
    def names(self) -> tuple[str, ...]:
        """The datasets or versions that the bound is about."""
        raise NotImplementedError

    @property
    def label(self) -> str:
        """The bound in words, by which reports know it again in the next refresh.

        Bounds with other limits have other labels, however little they differ.
        """
        raise NotImplementedError

    def __str__(self) -> str:
        return f"gate {self.model_dump(exclude_unset=True)}"


class DistanceBound(_AnyKind):
    """A bound on a distance.

    Attributes:
        lens: The name or the file of a lens to compare through.
        layer: The layer to compare, or `all`.
    """

    lens: str | None = None
    layer: str = ALL

    @property
    def most(self) -> float:
        """The largest distance that is accepted, in bins."""
        raise NotImplementedError

    @property
    def subject(self) -> str:
        """The distance that is bounded, in words."""
        words = [] if self.layer == ALL else [self.layer]
        words += [f"through lens {self.lens}"] if self.lens else []
        return f"{' and '.join(self.names)}, {' '.join(words) or 'all neurons'}"

    @property
    def label(self) -> str:
        """The bound in words."""
        return f"{self.subject}: at most {in_bins(self.most, digits_that_tell(self.most))}"


class Bound(DistanceBound):
    """A bound on how far apart two datasets may be.

    Attributes:
        a: One dataset, or the name of a version of it, such as `photos@release`.
        b: The other.
        max: The largest distance that is accepted, in bins.
    """

    kind = "distance"

    a: str
    b: str
    max: Length

    @property
    def names(self) -> tuple[str, ...]:
        """The two datasets."""
        return self.a, self.b

    @property
    def most(self) -> float:
        """The largest distance that is accepted, in bins."""
        return self.max


class MoveBound(DistanceBound):
    """A bound on how far a dataset may be from an earlier version of itself, or from some days.

    Attributes:
        dataset: The dataset, or a part of one.
        against: The earlier version, as it stands after a dataset's name: `@-1`, `@release`. Or a
            window of days of the newest version: `@last:7d`.
        max_move: The largest distance that is accepted, in bins.
    """

    kind = "move"

    dataset: Dataset
    against: Annotated[str, AfterValidator(_version_mark)]
    max_move: Length

    @property
    def earlier(self) -> str:
        """The name of the earlier version."""
        return f"{self.dataset}{self.against}"

    @property
    def counts_back(self) -> bool:
        """Whether `against` counts versions back from the newest, as `@-1` does."""
        which = VersionName.parse(self.earlier).which
        return isinstance(which, int) and which < 0

    @property
    def is_number(self) -> bool:
        """Whether `against` is the number of a commit, as `@7` is."""
        which = VersionName.parse(self.earlier).which
        return isinstance(which, int) and which >= 0

    @property
    def is_window(self) -> bool:
        """Whether `against` is a window of days of the newest version."""
        return VersionName.parse(self.earlier).is_window

    @property
    def back(self) -> int:
        """How many versions the dataset must have had before, so that there is anything to judge.

        With one before, a tag, a time or a number that names none is a mistake. A window takes no
        version before.
        """
        if self.is_window:
            return 0
        which = VersionName.parse(self.earlier).which
        return -which if isinstance(which, int) and which < 0 else 1

    @property
    def names(self) -> tuple[str, ...]:
        """The earlier version, and the dataset."""
        return self.earlier, self.dataset

    @property
    def most(self) -> float:
        """The largest distance that is accepted, in bins."""
        return self.max_move


class CountBound(_AnyKind):
    """A bound on a number of images of a dataset.

    Attributes:
        dataset: The dataset, or a part of one.
    """

    dataset: Dataset

    @property
    def names(self) -> tuple[str, ...]:
        """The dataset."""
        return (self.dataset,)


class FailedBound(CountBound):
    """A bound on how many images of a dataset could not be read.

    Attributes:
        max_failed: The most that are accepted: below 1 a share of all images, from 1 up a number.
    """

    kind = "failed"

    max_failed: Annotated[float, Field(allow_inf_nan=False), AfterValidator(_share_or_number)]

    @property
    def label(self) -> str:
        """The bound in words."""
        share = 0 < self.max_failed < 1
        limit = in_percent(self.max_failed) if share else f"{self.max_failed:,.0f}"
        return f"{self.dataset}, failed images: at most {limit}"

    def allowed(self, candidates: int) -> int:
        """Returns how many of so many images may fail."""
        return allowed_failures(self.max_failed, candidates)


class ImagesBound(CountBound):
    """A bound on how few images a dataset may have.

    Attributes:
        min_images: The fewest images that are accepted. Those that could not be read do not count.
    """

    kind = "images"

    min_images: Annotated[int, Field(ge=1)]

    @property
    def label(self) -> str:
        """The bound in words."""
        return f"{self.dataset}, images: at least {self.min_images:,}"


_LIMITS: dict[str, type[MoveBound | FailedBound | ImagesBound]] = {
    "max_move": MoveBound,
    "max_failed": FailedBound,
    "min_images": ImagesBound,
}


def read_bound(value: Any) -> Any:
    """Reads one bound; which kind it is follows from its keys.

    Args:
        value: A bound as YAML gives it, or one that was read already.

    Returns:
        The bound. What is wrong with it is raised as pydantic takes it.
    """
    if isinstance(value, _AnyKind):
        return value
    if not isinstance(value, dict) or "dataset" not in value:
        return Bound.model_validate(value)
    limits = [name for name in _LIMITS if name in value]
    if not limits and "against" in value:
        limits = ["max_move"]
    if len(limits) != 1:
        _refuse(f"give one of {', '.join(_LIMITS)}; each is a bound of its own")
    return _LIMITS[limits[0]].model_validate(value)


AnyBound = Annotated[
    Bound | MoveBound | FailedBound | ImagesBound,
    BeforeValidator(read_bound),
]
"""A bound of any kind."""
