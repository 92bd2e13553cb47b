"""How many requests S3 is asked, for each image, each shard and each build.

    python -m benchmarks.s3_requests

Ceph's gateway runs here, from Debian's packages, and a proxy before it counts what passes.
Three builds of other numbers of images and shards, each in a new catalogue, tell what a build, a
shard and an image cost: what is asked is linear in these, up to the 64 shards above which sums of
partials are kept, too. Then it is counted what other commands ask of the largest of the catalogues.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import os
import tarfile
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import boto3
import numpy as np

from benchmarks import measure
from tests.support import ceph
from tests.support.builders import jpeg
from tests.support.chaos import Chaos, Exchange

BUCKET = "requests"

SIZES = ((48, 16), (96, 16), (96, 32))
"""The numbers of images and of shards of the three builds, so few that folds are of one size."""

KINDS = ("LIST", "HEAD", "GET", "PUT", "DELETE")


RENEWED = b'"renewals"'
"""What a lease has in it once it was renewed."""


class Counting(Chaos):
    """A proxy that spoils nothing, and counts the requests of each kind.

    One that the server fails is not counted: the client sends it again. A busy server fails some.
    Nor is one that renews a lease, as that goes by the time that a shard takes.
    """

    def __init__(self, upstream: str) -> None:
        super().__init__(upstream)
        self.kinds: Counter[str] = Counter()

    async def _request(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> Exchange:
        exchange = await super()._request(reader, writer)
        of = "images" if f"{BUCKET}/images" in exchange.path.replace("%2F", "/") else "catalogue"
        kind = {"POST": "DELETE"}.get(exchange.method, exchange.method)
        if kind == "GET" and "list-type=2" in exchange.path:
            kind = "LIST"
            of = "images" if "prefix=images" in exchange.path else "catalogue"
        is_renewal = kind == "PUT" and "/attempts/" in exchange.path and RENEWED in exchange.body
        deliver = exchange.deliver

        async def counted(answer: tuple[bytes, bytes]) -> None:
            status = int(answer[0].split(b" ", 2)[1])
            if status < 500 and not is_renewal:
                self.kinds[f"{of} {kind}"] += 1
            await deliver(answer)

        exchange.deliver = counted  # type: ignore[method-assign]  # to see the answer
        return exchange

    def of(self, action: Callable[[], object]) -> dict[str, int]:
        """Does something, and returns how many requests of each kind it took."""
        self.kinds.clear()
        action()
        return dict(sorted(self.kinds.items()))


def put_images(client: Any, folder: str, count: int, *, tar: bool) -> None:
    """Puts images there as objects, or as one tar file."""
    images = {f"photo-{seed:04d}.jpg": jpeg(seed) for seed in range(count)}
    if not tar:
        for name, data in images.items():
            client.put_object(Bucket=BUCKET, Key=f"{folder}/{name}", Body=data)
        return
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, data in images.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    client.put_object(Bucket=BUCKET, Key=f"{folder}.tar", Body=packed.getvalue())


def per_unit(
    counted: list[dict[str, int]], sizes: Sequence[tuple[int, int]]
) -> dict[str, dict[str, float]]:
    """Finds what a build, a shard and an image cost, from three builds of so many of both."""
    kinds = sorted({kind for each in counted for kind in each})
    matrix = [[1, shards, images] for images, shards in sizes]
    found: dict[str, dict[str, float]] = {"build": {}, "shard": {}, "image": {}}
    for kind in kinds:
        solved = np.linalg.solve(matrix, [each.get(kind, 0) for each in counted])
        for unit, number in zip(found, solved, strict=True):
            if abs(number) > 1e-6:
                found[unit][kind] = round(float(number), 3)
    return found


def measured(proxy: Counting, client: Any) -> dict[str, Any]:
    from pipeline import Request, build, compare, storage, verify
    from pipeline.catalogue import Catalogue, collect

    options: dict[str, Any] = {"bins": 50}
    result: dict[str, Any] = {}
    for kind in ("objects", "tar"):
        counted, sizes = [], []
        for number, (images, wanted) in enumerate(SIZES):
            source = f"images/{kind}-{number}"
            put_images(client, source, images, tar=kind == "tar")
            url = f"s3://{BUCKET}/{source}{'.tar' if kind == 'tar' else ''}"
            place = Catalogue(f"s3://{BUCKET}/dnas-{kind}-{number}")
            request = Request(kind, url, shard_images=images // wanted, **options)
            counted.append(proxy.of(lambda p=place, r=request: build(p, r)))
            sizes.append((images, len(place.manifest(kind, place.find(kind)).heads)))
        result[kind] = {
            "builds": [
                {"images": images, "shards": number, "requests": requests}
                for (images, number), requests in zip(sizes, counted, strict=True)
            ],
            "each": per_unit(counted, sizes),
            "of the last catalogue": {
                "build, nothing changed": proxy.of(lambda p=place, r=request: build(p, r)),
                "verify": proxy.of(lambda p=place: verify(p)),
                "verify --all": proxy.of(lambda p=place: verify(p, all_versions=True)),
                "gc, nothing to remove": proxy.of(lambda p=place: collect(p)),
                "ls": proxy.of(lambda p=place: Catalogue(p.root).at()),
                "show": proxy.of(lambda p=place, k=kind: Catalogue(p.root).load(k)),
            },
        }
    orphans = [f"s3://{BUCKET}/dnas-objects-2/_work/orphan-{i:04d}" for i in range(1500)]
    for uri in orphans:
        storage.create(uri, b"x")
    grace = timedelta(seconds=-60)
    result["objects"]["of the last catalogue"]["gc, 1,500 to remove"] = proxy.of(
        lambda: collect(Catalogue(f"s3://{BUCKET}/dnas-objects-2"), grace=grace)
    )
    other = Request("other", f"s3://{BUCKET}/images/objects-1", shard_images=4, **options)
    place = Catalogue(f"s3://{BUCKET}/dnas-objects-2")
    result["objects"]["of the last catalogue"]["build of a second dataset"] = proxy.of(
        lambda: build(place, other)
    )
    for name in ("compare two", "compare two again"):
        result["objects"]["of the last catalogue"][name] = proxy.of(lambda: compare(place))
    return result


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    with ceph.started() as server:
        os.environ |= server
        client = boto3.client("s3")
        client.create_bucket(Bucket=BUCKET)
        with Counting(server["AWS_ENDPOINT_URL"]) as proxy:
            os.environ["AWS_ENDPOINT_URL"] = proxy.endpoint
            result = {"server": f"Ceph {ceph.version()}", **measured(proxy, client)}
    each = {unit: sum(kinds.values()) for unit, kinds in result["objects"]["each"].items()}
    told = ", ".join(f"{number:g} for each {unit}" for unit, number in each.items())
    measure.emit(result, f"requests of a build from objects: {told}")


if __name__ == "__main__":
    main()
