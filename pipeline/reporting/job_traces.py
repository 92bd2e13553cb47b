"""Sends a trace of a job to OpenTelemetry, if its standard variables ask for one.

    >>> with traced_job("build") as listener:                                 # doctest: +SKIP
    ...     build_datasets(catalogue, requests, engine, progress=listener)

Without the variables nothing of OpenTelemetry is imported.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.errors import UsageError
from pipeline.events import Listener, ignore

TRACE_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
"""The variables that ask for a trace."""

TRACE_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
"""The variables that say how it is sent. The first that is set counts."""


@contextmanager
def traced_job(command: str) -> Iterator[Listener]:
    """Sends a trace of a job while the block runs, if the environment asks for one.

    Args:
        command: The command that is the job, such as `build`.

    Yields:
        The listener to hand to the job.

    Raises:
        UsageError: A trace is asked for, and OpenTelemetry is not installed, refuses its settings,
            or is to send it in another way than by HTTP.
    """
    if (variable := _asking_variable()) is None:
        yield ignore
        return
    _require_http()
    try:
        from pipeline.reporting.job_spans import exported_spans
    except ModuleNotFoundError as error:
        raise UsageError(
            f"{variable} asks for traces, which need OpenTelemetry's SDK and its exporter "
            f"({error.name} is not installed): pip install 'vdna-pipeline[tracing]', or unset "
            "the variable"
        ) from error
    with exported_spans(command) as listener:
        yield listener


def _asking_variable() -> str | None:
    """Returns the variable that asks for a trace, if there is one."""
    exporters = os.environ.get("OTEL_TRACES_EXPORTER") or "otlp"
    if "otlp" not in exporters.replace(" ", "").split(","):
        return None
    return next((name for name in TRACE_ENDPOINTS if os.environ.get(name)), None)


def _require_http() -> None:
    """Refuses a protocol that the exporter does not speak.

    Raises:
        UsageError: The environment asks for it.
    """
    for name in TRACE_PROTOCOLS:
        if protocol := os.environ.get(name):
            if protocol != "http/protobuf":
                raise UsageError(
                    f"{name} is {protocol!r}, but traces are sent as 'http/protobuf' only: set it "
                    "to that, with an endpoint that takes it (port 4318 as a rule), or set "
                    "OTEL_TRACES_EXPORTER=none to send no traces"
                )
            return
