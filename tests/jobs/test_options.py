"""Every option stands once, and Python, the command line and datasets.yaml say the same of it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, fields
from pathlib import Path
from types import NoneType
from typing import Any, get_type_hints

import pytest
import typer
from typer.main import get_command
from typer.testing import CliRunner

from jobs.app import app
from pipeline import VisualDNA, api
from pipeline.building import (
    CalibrationRequest,
    EraseKeywords,
    EraseOptions,
    ForecastRequest,
    MemoryOptions,
    Request,
    make_dna,
)
from pipeline.building.request import MetricOptions
from pipeline.catalogue import (
    RetentionOptions,
    SnapshotKeywords,
    SnapshotOptions,
    VerifyKeywords,
    VerifyOptions,
)
from pipeline.comparing import (
    CompareKeywords,
    CompareOptions,
    MemoryLimit,
    NearestKeywords,
    NearestOptions,
    NearOptions,
    compare,
)
from pipeline.errors import UsageError
from pipeline.explaining import (
    DriftKeywords,
    DriftOptions,
    ExplainKeywords,
    ExplainOptions,
    FitKeywords,
    FitOptions,
    RankRequest,
    SuggestKeywords,
    SuggestOptions,
)
from pipeline.options import Field, Options, options_of
from pipeline.refreshing import load_config
from pipeline.refreshing.config import DatasetEntry, Defaults
from pipeline.reporting import ReportKeywords, ReportOptions
from pipeline.spec import Resources

COMMANDS: list[tuple[str, type[Options]]] = [
    ("build", Request),
    ("plan", ForecastRequest),
    ("calibrate", CalibrationRequest),
    ("rank", RankRequest),
    ("compare", CompareOptions),
    ("compare", MemoryLimit),
    ("compare", NearOptions),
    ("explain", ExplainOptions),
    ("drift", DriftOptions),
    ("suggest", SuggestOptions),
    ("suggest", MemoryLimit),
    ("report", ReportOptions),
    ("report", MemoryLimit),
    ("refresh", MemoryLimit),
    ("export-tables", MemoryLimit),
    ("verify", VerifyOptions),
    ("gc", RetentionOptions),
    ("erase", EraseOptions),
    *((command, SnapshotOptions) for command in ("rank", "show", "export", "export-tables")),
    *((command, Resources) for command in ("plan", "build", "calibrate", "rank", "refresh")),
    *((command, Resources) for command in ("demo", "show")),
]

BAD_VALUES: list[tuple[str, Any, str]] = [
    ("bins", 1, "it must be at least 2"),
    ("bins", 2**21, "it must be at most"),
    ("limit", 0, "it must be at least 1"),
    ("max_failures", -0.5, "it must be at least 0"),
    ("max_failures", float("nan"), "it must be at least 0"),
    ("max_failures", 1.5, "it must be a fraction below 1, or a whole number"),
    ("shard_images", -8, "it must be at least 1"),
    ("exemplars", -1, "it must be at least 0"),
]


KEYWORDS: list[tuple[type, type[Options]]] = [
    (SnapshotKeywords, SnapshotOptions),
    (CompareKeywords, CompareOptions),
    (NearestKeywords, NearestOptions),
    (ExplainKeywords, ExplainOptions),
    (FitKeywords, FitOptions),
    (DriftKeywords, DriftOptions),
    (SuggestKeywords, SuggestOptions),
    (VerifyKeywords, VerifyOptions),
    (ReportKeywords, ReportOptions),
    (EraseKeywords, EraseOptions),
]


def as_declared(default: Any, option: Field) -> Any:
    """Turns a default of the command line, which knows neither tuples nor unions, back."""
    if isinstance(default, list):
        return tuple(default)
    return int(default) if isinstance(option.default, int) and str in option.kinds else default


def parameters_of(command: str) -> dict[str, Any]:
    group = get_command(app)
    assert isinstance(group, typer.core.TyperGroup)
    return {parameter.name or "": parameter for parameter in group.commands[command].params}


@pytest.mark.parametrize(("command", "model"), COMMANDS)
def test_the_command_line_has_every_option_as_it_was_declared(
    command: str, model: type[Options]
) -> None:
    parameters = parameters_of(command)
    told = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"}).stdout
    for option in options_of(model):
        parameter = parameters[option.name]
        assert parameter.help == option.option.help
        assert parameter.required == (option.required and NoneType not in option.kinds)
        if not option.required:
            assert as_declared(parameter.default, option) == option.default
        if not option.option.argument:
            name = option.option.flag or f"--{option.name.replace('_', '-')}"
            assert parameter.opts == [name]
            both = bool in option.kinds and option.default is not False
            assert parameter.secondary_opts == ([f"--no-{name[2:]}"] if both else [])
        assert "|".join(option.choices) in told


@pytest.mark.parametrize("model", [Request, CalibrationRequest, RankRequest])
def test_python_has_every_option_and_no_field_is_without(model: type[Options]) -> None:
    parameters = inspect.signature(model).parameters
    options = {option.name: option for option in options_of(model)}
    assert parameters.keys() == options.keys() == {field.name for field in fields(model)}  # type: ignore[arg-type]
    for name, parameter in parameters.items():
        default = MISSING if parameter.default is parameter.empty else parameter.default
        assert default == options[name].default


def test_datasets_yaml_has_every_option_as_it_was_declared() -> None:
    options = {option.name: option for option in options_of(Request)}
    assert DatasetEntry.model_fields.keys() == options.keys()
    optional = {name for name, option in options.items() if not option.required}
    assert Defaults.model_fields.keys() == optional
    for name, field in DatasetEntry.model_fields.items():
        assert field.description == options[name].option.help
        assert field.is_required() == options[name].required
        assert field.is_required() or field.default == options[name].default


def test_the_keywords_of_make_dna_are_the_options_of_a_request_without_a_catalogue() -> None:
    needs_a_catalogue = {"name", "group_by", "by", "shard_images", "exemplars", "exemplar_taps"}
    needs_a_catalogue |= {"replace", "spec", "changes", "cell_images", "pair_by", "image_hashes"}
    options = {option.name: option.kind for option in options_of(Request)}
    for name in needs_a_catalogue | {"source"}:
        del options[name]
    assert get_type_hints(MemoryOptions) == options


@pytest.mark.parametrize(("keywords", "model"), KEYWORDS)
def test_keywords_have_the_names_and_types_of_the_options(
    keywords: type, model: type[Options]
) -> None:
    assert get_type_hints(keywords) == get_type_hints(model)
    assert get_type_hints(keywords).keys() == {option.name for option in options_of(model)}


@pytest.mark.parametrize(
    ("function", "model"),
    [
        (api.compare, CompareOptions),
        (api.nearest, NearestOptions),
        (api.explain, ExplainOptions),
        (api.drift, DriftOptions),
        (api.suggest, SuggestOptions),
        (api.rank, SnapshotOptions),
        (api.fit_lens, FitOptions),
        (api.verify, VerifyOptions),
        (api.report, ReportOptions),
    ],
)
def test_the_help_of_a_function_shows_its_options(
    function: Callable[..., Any], model: type[Options]
) -> None:
    parameters = inspect.signature(function).parameters
    for name, field in inspect.signature(model).parameters.items():
        assert parameters[name].default == field.default
    assert "options" not in parameters
    for option in options_of(model):
        assert f"    {option.name}: {option.option.help}" in (function.__doc__ or "")


def test_the_help_of_make_dna_shows_only_options_that_it_takes() -> None:
    parameters = inspect.signature(api.make_dna).parameters
    assert parameters["bins"].default == Request("a", "photos").bins
    assert parameters.keys() > MemoryOptions.__annotations__.keys()
    assert "shard_images" not in parameters


def test_the_help_of_the_metric_shows_only_options_that_it_takes() -> None:
    parameters = inspect.signature(VisualDNA).parameters
    assert parameters.keys() > MetricOptions.__annotations__.keys()
    assert "limit" not in parameters


def test_a_function_refuses_what_is_no_option_of_it() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'layer'"):
        compare("memory://nothing", layer="head")  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: SnapshotOptions(at=1.5), "at is 1.5; it must be a whole number or text"),  # type: ignore[arg-type]
        (lambda: CompareOptions(layers="head"), "layers is 'head'; it must be a list"),
        (lambda: ExplainOptions(layers="head"), "layers is 'head'; it must be a list"),
        (lambda: DriftOptions(limit=1), "limit is 1; it must be at least 2"),
        (lambda: FitOptions(top=0), "top is 0; it must be at least 1"),
        (lambda: ReportOptions(samples=-1), "samples is -1; it must be at least 0"),
        (lambda: MemoryLimit(memory=0), "memory is 0; it must be at least 0.01"),
        (lambda: Resources(fetch_ahead=0), "fetch_ahead is 0; it must be at least 1"),
        (lambda: Resources(fetch_ahead=1.5), "fetch_ahead is 1.5; it must be a whole number"),  # type: ignore[arg-type]
        (lambda: Resources(decode_seconds=0), "decode_seconds is 0; it must be at least 0.01"),
        (lambda: Resources(stall_seconds=0.5), "stall_seconds is 0.5; it must be at least 1"),
        (lambda: VerifyOptions(sample=0), "sample is 0; give a number of shards from 1 up"),
        (lambda: VerifyOptions(sample="9" * 5000), "sample is '9{199}…; give a number of shards"),
        (lambda: VerifyOptions(sample="few"), "sample is 'few'; give a number of shards"),
        (lambda: VerifyOptions(sample="all"), "`sample` needs `deep`, which counts shards again"),
        (lambda: VerifyOptions(sample=4), "`sample` needs `deep`"),
        (lambda: VerifyOptions(seed=0), "`seed` needs `deep`"),
        (lambda: VerifyOptions(seed=1, weights="w"), "`seed` and `weights` need `deep`"),
    ],
)
def test_an_option_of_a_function_has_its_limits(make: Callable[[], Options], problem: str) -> None:
    with pytest.raises(UsageError, match=f"^{problem}"):
        make()


def test_options_that_only_python_can_set_are_no_options_of_a_command() -> None:
    hidden = {"fetch_ahead", "decode_seconds", "stall_seconds"}
    offered = {option.name for option in options_of(Resources)}
    assert {field.name for field in fields(Resources)} == offered | hidden
    assert not hidden & (offered | parameters_of("build").keys())


def test_make_dna_refuses_what_is_no_option_of_it() -> None:
    with pytest.raises(TypeError, match="takes no option binz"):
        make_dna("photos", binz=100)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="takes no option shard_images"):
        make_dna("photos", shard_images=100)  # type: ignore[call-arg]


@pytest.mark.parametrize(("name", "value", "problem"), BAD_VALUES)
def test_a_bad_value_is_refused_in_the_same_words_everywhere(
    tmp_path: Path, name: str, value: Any, problem: str
) -> None:
    with pytest.raises(UsageError) as caught:
        Request("a", "photos", **{name: value})
    by_python = str(caught.value)
    assert by_python.startswith(f"{name} is {value!r}; {problem}")
    words = ["build", "a", "photos", "-c", str(tmp_path / "c")]
    flag = f"--{name.replace('_', '-')}"
    done = CliRunner().invoke(app, [*words, flag, str(value)])
    assert done.exit_code == 2
    assert done.stderr == f"error: {by_python}\n"
    config = tmp_path / "datasets.yaml"
    text = ".nan" if value != value else value
    config.write_text(f"datasets: [{{name: a, source: photos, {name}: {text}}}]\n")
    with pytest.raises(UsageError) as refused:
        load_config(str(config))
    said = by_python.partition("; ")[2]
    assert str(refused.value) == f"{config}: datasets.0.{name} is {value!r}: {said}"


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("bins", "many", "it must be a whole number"),
        ("bins", True, "it must be a whole number"),
        ("max_failures", "few", "it must be a number"),
        ("layer_gaussian", 1, "it must be true or false"),
        ("source", 7, "it must be text"),
        ("include", ["*.png"], "it must be text"),
        ("precision", "fp16", "choose fp32 or bf16"),
        ("resize", None, "choose clean or fast"),
    ],
)
def test_a_value_of_another_type_is_refused(name: str, value: Any, problem: str) -> None:
    options = {"name": "a", "source": "photos", name: value}
    with pytest.raises(UsageError) as caught:
        Request(**options)
    assert str(caught.value) == f"{name} is {value!r}; {problem}"


def test_a_number_of_folders_may_be_a_number() -> None:
    request = Request("a", "photos", by=1, group_by=2)  # type: ignore[arg-type]
    assert (request.by, request.group_by) == ("1", "2")


def test_every_option_has_a_sentence_of_help() -> None:
    declared: list[Field] = []
    models = (Request, CalibrationRequest, RankRequest, Resources, MemoryLimit)
    for model in (*models, *(model for _, model in KEYWORDS)):
        declared += options_of(model)
    for option in declared:
        text = option.option.help
        assert text[0].isupper(), text
        assert text.endswith((".", "'")), text
