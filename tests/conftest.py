"""An S3 server over real HTTP, and a built catalogue, each made once."""

from __future__ import annotations

import os
from collections.abc import Iterator

import boto3
import pytest


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """moto's server, reached by the standard settings as any store is."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    settings = {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "key-for-tests",
        "AWS_SECRET_ACCESS_KEY": "planted-secret-of-tests",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    yield endpoint
    for name, value in before.items():
        if value is None:
            os.environ.pop(name)
        else:
            os.environ[name] = value
    server.stop()


@pytest.fixture(scope="session")
def bucket(s3_server: str) -> str:
    boto3.client("s3").create_bucket(Bucket="vdna-tests")
    return "s3://vdna-tests"
