"""Starts the servers of objects over real HTTP once, and reports which browser there is."""

from __future__ import annotations

import gc
import os
import uuid
from collections.abc import Generator, Iterator
from contextlib import ExitStack
from functools import cache
from typing import Any

import boto3
import pytest
import typer.testing
from botocore.loaders import JSONFileLoader
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import settings
from s3fs import S3FileSystem

from tests.support import azurite, browser, ceph, repeated_tests, s3
from tests.support.distribution import FilesOrClusters
from tests.support.failures import FailuresAtOnce
from tests.support.repeated_tests import COME_LAST, can_be_left_out, time_is_short

LONGEST = [
    f"test_{name}.py"
    for name in (
        "ray_engine",
        "elastic",
        "chaos",
        "scale",
        "sharing",
        "histories",
        "table_histories",
        "agreement",
        "autoscaler",
        "kills",
        "change_list",
        "ray_decoding",
        "ray_jobs",
        "benchmarks",
        "experiments",
        "faults",
        "demo",
        "notebooks",
        "erasing",
        "manifest",
        "cli",
        "task_listing",
        "window_path",
        "image_look",
        "intervals",
        "networks",
        "substituted_files",
        "live_site",
        "changed_builds",
        "image_hashes",
        "kept_neurons",
        "reference_files",
        "version_drift",
        "gate",
        "verification",
        "lake_tables",
        "shard",
        "ranking",
        "tiles",
        "lens_fit",
        "reduction",
        "browser",
        "s3",
        "ceph",
        "counting_ahead",
        "altered_sample",
        "bounds",
        "images",
        "accessibility",
        "compaction",
        "partial_reads",
        "openvino",
        "nearest_search",
        "build",
        "calibration",
        "window_sums",
        "extractor",
        "archives",
    )
]
os.environ["TRITON_INTERPRET"] = "1"  # the GPU's kernel runs on a CPU; read as Triton is imported
os.environ |= {"RAY_worker_niceness": "0"}  # else workers wait for all tests that run beside them
settings.register_profile("unhurried", parent=settings(), deadline=None)  # machines are busy
settings.load_profile("unhurried")
# Made once, and not again by each of a thousand calls.
typer.testing._get_command = cache(typer.testing._get_command)
# Read once, and not again for each of many clients of S3: what AWS's services are like, megabytes.
descriptions = cache(JSONFileLoader().load_file)
JSONFileLoader.load_file = lambda self, file_path: descriptions(file_path)
STARTED = pytest.StashKey[dict[str, str]]()


def pytest_configure(config: pytest.Config) -> None:
    s3.chosen()  # a server that is asked for and missing is an error at once
    azurite.chosen()
    browser.chosen()
    config.pluginmanager.register(FailuresAtOnce(config))
    config.pluginmanager.register(repeated_tests)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Collects no garbage of what is imported, now or later, for it stays to the end."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_unconfigure() -> None:
    gc.unfreeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Runs the longest files first, because one worker runs a whole file.

    Where time is short, tests that can be left out come last: as many run as it allows.
    """
    order = {name: at for at, name in enumerate(LONGEST)}
    if time_is_short():
        order |= {name: len(order) + at for at, name in enumerate(COME_LAST, 1)}

    def place(item: pytest.Item) -> tuple[int, bool]:
        last = time_is_short() and can_be_left_out(item)
        return order.get(item.path.name, len(LONGEST)), last

    items.sort(key=place)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> FilesOrClusters | None:
    return FilesOrClusters(config, log) if config.getvalue("dist") == "loadfile" else None


def pytest_report_header() -> list[str]:
    return [s3.described(), azurite.described(), browser.described()]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.line(s3.described())
    terminalreporter.line(azurite.described())
    terminalreporter.line(browser.described())


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Lets the workers of xdist share one Ceph."""
    if s3.chosen() == "ceph":
        if STARTED not in node.config.stash:
            stack = ExitStack()
            node.config.add_cleanup(stack.close)
            node.config.stash[STARTED] = stack.enter_context(ceph.started())
        node.workerinput["s3"] = node.config.stash[STARTED]


@pytest.fixture(scope="session", autouse=True)
def no_wait_for_the_disk() -> Iterator[None]:
    """Writes files without waiting until they would outlast a power cut, which no test makes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def torch_by_default() -> Iterator[None]:
    """Lets torch run the networks of all tests that do not say so, as where it is alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.counting.backends.openvino_is_installed", lambda: False)
        yield


@pytest.fixture(autouse=True)
def no_memory_of_earlier_tests() -> Iterator[None]:
    """Removes what a test has stored at `memory://`, whose every look-up goes through all of it."""
    before = set(MemoryFileSystem.store)
    yield
    for path in set(MemoryFileSystem.store) - before:
        del MemoryFileSystem.store[path]


@pytest.fixture(scope="session")
def s3_server(request: pytest.FixtureRequest) -> Iterator[str]:
    """Yields the endpoint of the server, which the standard settings name, as for any store."""
    with ExitStack() as stack:
        settings = getattr(request.config, "workerinput", {}).get("s3") or stack.enter_context(
            ceph.started() if s3.chosen() == "ceph" else s3.moto()
        )
        environment = stack.enter_context(pytest.MonkeyPatch.context())
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):  # the developer's own
            environment.delenv(name, raising=False)
        for name, value in settings.items():
            environment.setenv(name, value)
        S3FileSystem.clear_instance_cache()  # of tests that needed no server
        yield settings["AWS_ENDPOINT_URL"]


@pytest.fixture(scope="session")
def bucket(s3_server: str) -> str:
    boto3.client("s3").create_bucket(Bucket="vdna-tests")
    return "s3://vdna-tests"


@pytest.fixture(scope="session")
def container() -> Iterator[str]:
    """Yields a container of Azure's, or skips the test."""
    if not azurite.chosen():
        pytest.skip(f"needs Azurite: {azurite.INSTALL}")
    with azurite.started() as settings, pytest.MonkeyPatch.context() as environment:
        for name, value in settings.items():
            environment.setenv(name, value)
        with azurite.client() as client:
            client.create_container("vdna-tests")
        yield "abfs://vdna-tests"


@pytest.fixture
def root(bucket: str) -> str:
    """Returns a prefix in the bucket that no other test uses."""
    return f"{bucket}/{uuid.uuid4().hex}"
