"""Starts the S3 server of the tests, Ceph or else moto, and asks it with another client, too."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Protocol

import boto3
import pytest

from pipeline import storage
from tests.support import ceph
from tests.support.builders import jpeg

CHOICE = "VDNA_TEST_S3"

SERVE = """
import logging, sys
from moto.server import ThreadedMotoServer

logging.getLogger("werkzeug").setLevel(logging.ERROR)  # else it prints each request
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(*server.get_host_and_port(), sep=":", flush=True)
sys.stdin.read()  # ends with the process that started this one, however that ends
"""


def chosen() -> str:
    """Returns `ceph` or `moto`; raises `pytest.UsageError` if `VDNA_TEST_S3` is another word."""
    wanted, missing = os.environ.get(CHOICE), ceph.missing()
    if wanted not in (None, "ceph", "moto"):
        raise pytest.UsageError(f"{CHOICE}={wanted}: give ceph or moto")
    if wanted == "ceph" and missing:
        raise pytest.UsageError(
            f"{CHOICE}=ceph, but {', '.join(missing)} are not installed: {ceph.INSTALL}"
        )
    return wanted or ("moto" if missing else "ceph")


def described() -> str:
    if chosen() == "ceph":
        return f"S3 server: Ceph RADOS Gateway {ceph.version()}"
    why = f"{CHOICE}=moto" if CHOICE in os.environ else f"for Ceph: {ceph.INSTALL}"
    return f"S3 server: moto {version('moto')}, an imitation ({why})"


def only_ceph(reason: str) -> pytest.MarkDecorator:
    """Skips a test on moto, where it could not fail or could not pass; `reason` says why."""
    return pytest.mark.skipif(chosen() != "ceph", reason=f"needs Ceph: {reason}")


@contextmanager
def moto() -> Iterator[dict[str, str]]:
    """Starts moto in a process of its own, and yields the variables that clients need.

    In one process with boto3 it breaks: both read the same descriptions of S3's requests, and
    boto3 changes them.
    """
    with subprocess.Popen(
        [sys.executable, "-c", SERVE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            address = process.stdout.readline().strip()
            if not address:
                raise RuntimeError("moto ended before it was ready; it says above why")
            yield {
                "AWS_ENDPOINT_URL": f"http://{address}",
                "AWS_ACCESS_KEY_ID": "key-for-tests",
                "AWS_SECRET_ACCESS_KEY": "planted-secret-of-tests",
                "AWS_DEFAULT_REGION": "us-east-1",
            }
        finally:
            process.terminate()


def put(uri: str, data: bytes) -> None:
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    boto3.client("s3").put_object(Bucket=bucket, Key=key, Body=data)


def remove(uri: str) -> None:
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    boto3.client("s3").delete_object(Bucket=bucket, Key=key)


def fill(prefix: str, count: int, first_seed: int = 0) -> str:
    for seed in range(first_seed, first_seed + count):
        put(f"{prefix}/photo-{seed:04d}.jpg", jpeg(seed))
    return prefix


def contents(prefix: str) -> dict[str, bytes]:
    """Reads every object below with another client than ours."""
    bucket, _, head = prefix.removeprefix("s3://").partition("/")
    client = boto3.client("s3")
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{head}/")
    keys = [item["Key"] for page in pages for item in page.get("Contents", ())]
    return {key: client.get_object(Bucket=bucket, Key=key)["Body"].read() for key in keys}


class Barrier(Protocol):
    """A barrier of threads or of processes."""

    def wait(self, timeout: float) -> int: ...


class ResultQueue(Protocol):
    def put(self, item: tuple[str, list[int]]) -> None: ...


def race(root: str, mine: str, rounds: int, barrier: Barrier, told: ResultQueue) -> None:
    """Creates the same objects as others at the same time, and tells which this one wrote."""
    won = []
    for number in range(rounds):
        barrier.wait(60)
        if storage.create(f"{root}/{number}", mine.encode()):
            won.append(number)
    told.put((mine, won))
