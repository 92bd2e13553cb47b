"""`datasets.yaml`: the datasets that a scheduled refresh keeps up to date, validated.

>>> load_config("datasets.yaml").requests()[0].name          # doctest: +SKIP
"""

from __future__ import annotations

from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline import storage
from pipeline.build import DEFAULT_MAX_FAILURES, Request
from pipeline.errors import UsageError


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


class Dataset(Settings):
    name: str
    source: str


class Config(BaseModel):
    """`catalogue` may be left to `--catalogue` or VDNA_CATALOGUE."""

    model_config = ConfigDict(extra="forbid", strict=True)

    catalogue: str | None = None
    defaults: Settings = Settings()
    datasets: list[Dataset] = Field(min_length=1)

    def requests(self) -> list[Request]:
        """One request a dataset: its own settings over the defaults."""
        defaults = self.defaults.model_dump(exclude_unset=True)
        requests = []
        for dataset in self.datasets:
            values = defaults | dataset.model_dump(exclude_unset=True)
            if values.get("group_by") is not None:
                values["group_by"] = str(values["group_by"])
            requests.append(Request(**values))
        return requests


def load_config(path: str) -> Config:
    """Raises `UsageError` naming the file, the field and the value that is wrong."""
    text = storage.read(storage.canonical(path))
    try:
        config = Config.model_validate(yaml.safe_load(text))
    except yaml.YAMLError as error:
        raise UsageError(f"{path} is not YAML: {error}") from error
    except ValidationError as error:
        wrong = "; ".join(
            f"{'.'.join(map(str, e['loc'])) or 'the whole'} is {e['input']!r}: {e['msg']}"
            for e in error.errors()
        )
        raise UsageError(f"{path}: {wrong}") from error
    names = [dataset.name for dataset in config.datasets]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError(f"{path}: datasets.name is given twice: {', '.join(map(repr, twice))}")
    try:
        config.requests()
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error
    return config
