"""Counts the requests of builds, `verify` and `gc` by a proxy before a server of S3.

The server is Ceph if it is installed, and else moto, an imitation.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import boto3

from benchmarks.s3_requests import BUCKET, SIZES, Counting, per_unit, put_images
from tests.support import ceph
from tests.support.chaos import Exchange

BINS = 50


class Weighing(Counting):
    """Counts bytes, too: those of bodies that are put, and of answers to reads."""

    def __init__(self, upstream: str) -> None:
        super().__init__(upstream)
        self.read = self.written = 0

    async def _request(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> Exchange:
        exchange = await super()._request(reader, writer)
        deliver = exchange.deliver
        is_read = exchange.method == "GET" and "list-type=2" not in exchange.path
        self.written += len(exchange.body) if exchange.method == "PUT" else 0

        async def weighed(answer: tuple[bytes, bytes]) -> None:
            self.read += len(answer[1]) if is_read else 0
            await deliver(answer)

        exchange.deliver = weighed  # type: ignore[method-assign]  # the bytes are counted on the way
        return exchange


@contextmanager
def counted_server() -> Iterator[tuple[Weighing, Any]]:
    """Starts a server and a proxy that counts, and points the standard settings at it."""
    from tests.support.s3 import moto

    with moto() if ceph.missing() else ceph.started() as server:
        os.environ |= server
        client = boto3.client("s3")
        client.create_bucket(Bucket=BUCKET)
        with Weighing(server["AWS_ENDPOINT_URL"]) as proxy:
            os.environ["AWS_ENDPOINT_URL"] = proxy.endpoint
            yield proxy, client


def by_kind(counted: dict[str, int]) -> dict[str, int]:
    """The numbers of each kind, wherever the objects are."""
    total: Counter[str] = Counter()
    for name, number in counted.items():
        total[name.rpartition(" ")[2]] += number
    return dict(total)


def coefficients() -> dict[str, Any]:
    """What a build, `verify` and `gc` ask: for any number, for each shard and for each image."""
    from pipeline import Request, build, verify
    from pipeline.catalogue import Catalogue, collect

    found: dict[str, list[dict[str, int]]] = {"build": [], "verify": [], "gc": []}
    sizes = []
    with counted_server() as (proxy, client):
        for number, (images, wanted) in enumerate(SIZES):
            put_images(client, f"images/{number}", images, tar=False)
            place = Catalogue(f"s3://{BUCKET}/dnas-{number}")
            url = f"s3://{BUCKET}/images/{number}"
            request = Request("photos", url, shard_images=images // wanted, bins=BINS)
            jobs = {
                "build": lambda p=place, r=request: build(p, r),
                "verify": lambda p=place: verify(p),
                "gc": lambda p=place: collect(p),
            }
            for job, action in jobs.items():
                found[job].append(by_kind(proxy.of(action)))
            sizes.append((images, len(place.manifest("photos", place.find("photos")).heads)))
    return {"requests": {job: per_unit(counted, sizes) for job, counted in found.items()}}
