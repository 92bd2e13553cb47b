"""A stand-in for S3 that lists keys from a formula, in a process of its own.

    with serving(entries=10**6) as variables: os.environ |= variables

It answers pages of listings and reads, and nothing else. So what a client spends on them is
measured, and not what a store does.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from benchmarks.listing import PAGE, etag, first_above, key
from benchmarks.measure import ROOT

BUCKET = "stand-in"
PREFIX = "images/"


def page(entries: int, after: str) -> bytes:
    """A page of the listing: the keys above `after`, which is below the prefix."""
    first = first_above(after, entries) if after else 0
    last = min(first + PAGE, entries)
    rows = "".join(
        f"<Contents><Key>{PREFIX}{key(i)}</Key><LastModified>2026-01-01T00:00:00.000Z"
        f"</LastModified><ETag>&quot;{etag(i, '')}&quot;</ETag><Size>{100_000 + i % 1000}"
        "</Size><StorageClass>STANDARD</StorageClass></Contents>"
        for i in range(first, last)
    )
    more = last < entries
    token = f"<NextContinuationToken>{key(last - 1)}</NextContinuationToken>" if more else ""
    return (
        '<?xml version="1.0" encoding="UTF-8"?>'
        '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        f"<Name>{BUCKET}</Name><Prefix>{PREFIX}</Prefix><KeyCount>{last - first}</KeyCount>"
        f"<MaxKeys>{PAGE}</MaxKeys><IsTruncated>{str(more).lower()}</IsTruncated>{token}{rows}"
        "</ListBucketResult>"
    ).encode()


def handler(entries: int, body: bytes) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            asked = parse_qs(urlsplit(self.path).query)
            if "list-type" not in asked:
                return self.answer(body, "image/jpeg")
            after = asked.get("continuation-token") or asked.get("start-after") or [""]
            self.answer(page(entries, after[0].removeprefix(PREFIX)), "application/xml")

        def answer(self, data: bytes, kind: str) -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("ETag", '"0123456789abcdef0123456789abcdef"')
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    return Handler


@contextmanager
def serving(entries: int, object_bytes: int = 0) -> Iterator[dict[str, str]]:
    """Yields the variables with which clients of S3 find the stand-in."""
    command = [sys.executable, "-m", "benchmarks.scale.stand_in", str(entries), str(object_bytes)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        port = process.stdout.readline().strip()
        try:
            yield {
                "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
                "AWS_ACCESS_KEY_ID": "nobody",
                "AWS_SECRET_ACCESS_KEY": "nothing",
                "AWS_DEFAULT_REGION": "us-east-1",
            }
        finally:
            process.terminate()


def main() -> None:
    entries, object_bytes = map(int, sys.argv[1:])
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(entries, os.urandom(object_bytes)))
    print(server.server_port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
