"""Reads and writes objects of S3: one request each, with the answer's own ETag and length.

s3fs makes the connection and signs. Its functions for files are not used for content, because
`cat_file` drops the headers of the answer and may send several requests for one object.
"""

from __future__ import annotations

import io
from collections.abc import Awaitable, Callable, Iterator, Sequence
from itertools import groupby, pairwise
from typing import Any, cast
from weakref import WeakSet

import fsspec
from fsspec.asyn import sync

from pipeline.buffers import Data, Mapped, size_of
from pipeline.errors import StorageError
from pipeline.storage.answers import NO_LENGTH, RANGE_NOT_SATISFIABLE, range_of, read_body, within
from pipeline.storage.listing_pages import BEFORE_PARSE, take_objects
from pipeline.storage.name_patterns import NamePattern
from pipeline.storage.other import Details, FsspecStore, identity_of, is_folder_marker, nothing
from pipeline.storage.request_count import count_requests
from pipeline.storage.retry import RetrySettings, attempt, status_of
from pipeline.storage.store import Answer, Stored

CONNECTIONS = 64
"""The most connections to one store. A worker has fewer threads, so none waits for another."""

DELETED_AT_ONCE = 1000
"""The most keys that S3 deletes in one request."""

PAGE_BYTES = 2**20
"""The most bytes of a page of a listing, which is XML with up to a thousand keys."""

BEFORE_SEND = "before-send.s3"
"""The event of botocore that comes with each request."""

_PREPARED: WeakSet[Any] = WeakSet()
"""The clients whose requests are counted, and whose pages of listings we read."""

_PRECONDITION_FAILED = 412


class S3Store(FsspecStore):
    """Amazon S3, or a server that speaks its language."""

    lists_in_key_order = True
    answers_ranges = True

    def open(self, uri: str) -> tuple[Any, str]:
        """Opens s3fs, told to try once: this room tries again by itself."""
        fs, path = super().open(uri)
        fs.retries = 1
        return fs, path

    def options(self) -> dict[str, Any]:
        """Adds our limits to fsspec's settings; endpoint and keys come from S3's own settings."""
        settings = RetrySettings.from_environment()
        given = fsspec.config.conf.get("s3", {}).get("config_kwargs", {})
        return {
            "use_listings_cache": False,
            "skip_instance_cache": False,
            "config_kwargs": {
                **given,
                "connect_timeout": settings.connect_seconds,
                "read_timeout": settings.read_seconds,
                "max_pool_connections": CONNECTIONS,
                "retries": {"mode": "standard", "total_max_attempts": 1},
            },
        }

    def details(self, uri: str) -> Details:
        """Asks for what the store tells about an object, a prefix or a bucket."""
        fs, path = self.open(uri)
        return cast(Details, sync(fs.loop, _in_time, fs, lambda: fs._info(path)))

    def exists(self, uri: str) -> bool:
        """Asks with one HEAD. Where there is no object, s3fs would list too, to find a folder."""
        fs, path = self.open(uri)
        bucket, key = _bucket_and_key(path)
        return bool(key) and bool(_call(fs, "head_object", 0, Bucket=bucket, Key=key))

    def get(self, uri: str, start: int, length: int | None, most: int | None = None) -> Answer:
        """Reads with one GET."""
        fs, path = self.open(uri)
        bucket, key = _bucket_and_key(path)

        async def get() -> Answer:
            if length == 0:
                return await past_the_end()
            asked = {} if length is None else {"Range": f"bytes={start}-{start + length - 1}"}
            try:
                answer = await _in_time(
                    fs, lambda: fs._call_s3("get_object", Bucket=bucket, Key=key, **asked)
                )
            except OSError as error:
                if status_of(error) == RANGE_NOT_SATISFIABLE:
                    return await past_the_end()
                raise
            async with answer["Body"] as body:
                if "ContentLength" not in answer:
                    raise StorageError(f"{uri}: {NO_LENGTH}")
                status = answer["ResponseMetadata"]["HTTPStatusCode"]
                part = range_of(uri, status, answer.get("ContentRange"))
                data, size = await read_body(
                    body.read, answer["ContentLength"], part, start, length, most
                )
            identity = identity_of({**answer, "size": size})
            return Answer(data or b"", identity, size, is_too_long=data is None)

        async def past_the_end() -> Answer:
            return nothing(uri, start, length, await _in_time(fs, lambda: fs._info(path)))

        return cast(Answer, sync(fs.loop, get))

    def put(self, uri: str, data: Data, *, exclusive: bool) -> bool:
        """Writes with one PUT."""
        fs, path = self.open(uri)
        bucket, key = _bucket_and_key(path)
        condition = {"IfNoneMatch": "*"} if exclusive else {}
        try:
            with io.BufferedReader(Mapped(data)) as body:
                arguments = {"Bucket": bucket, "Key": key, "Body": body, **condition}
                _call(fs, "put_object", size_of(data), **arguments)
            return True
        except OSError as error:
            # Told by the status, because s3fs makes EINVAL of Ceph's answer.
            if exclusive and status_of(error) == _PRECONDITION_FAILED:
                return False
            raise

    def delete_all(self, uris: Sequence[str]) -> None:
        """Removes a thousand objects with each request."""
        for bucket, of_bucket in groupby(uris, lambda uri: uri.split("/", 3)[2]):
            names = [uri.split("/", 3)[3] for uri in of_bucket]
            for first in range(0, len(names), DELETED_AT_ONCE):
                self._delete_keys(bucket, names[first : first + DELETED_AT_ONCE])

    def delete_tree(self, uri: str) -> None:
        """Removes a thousand objects with each request."""
        bucket, key = _bucket_and_key(uri.removeprefix("s3://"))
        self.delete_all([item.uri for item in self._keys(uri, bucket, f"{key}/")])

    def _delete_keys(self, bucket: str, names: Sequence[str]) -> None:
        uri = f"s3://{bucket}"
        fs, _ = self.open(uri)
        some = {"Objects": [{"Key": name} for name in names], "Quiet": True}

        def remove() -> None:
            answer = _call(fs, "delete_objects", PAGE_BYTES, Bucket=bucket, Delete=some)
            for error in answer.get("Errors", ()):
                code = error.get("Code")
                kind = PermissionError if code == "AccessDenied" else OSError
                raise kind(f"{error.get('Key')} is not deleted: {code}")

        attempt(uri, remove)

    def alone(self, uri: str) -> list[Stored]:
        """Gives the object of that name, or nothing for an empty bucket."""
        if "/" in uri.removeprefix("s3://"):
            return super().alone(uri)
        attempt(uri, lambda: self.details(uri))
        return []

    def pages(self, uri: str) -> Iterator[list[Stored]]:
        """Yields the objects of each page of the listing."""
        after, more = "", True
        while more:
            items, after, more = self.list_page(uri, after)
            yield items

    def list_page(self, uri: str, after: str) -> tuple[list[Stored], str, bool]:
        """Lists the next objects below a prefix; see `pipeline.storage.list_page`."""
        bucket, folder = _bucket_and_key(uri.removeprefix("s3://"))
        prefix = f"{folder}/" if folder else ""
        asked = {"Bucket": bucket, "Prefix": prefix}
        if after:
            asked["StartAfter"] = prefix + after
        items: list[Stored] = []
        last = after
        while asked and last == after:  # a page may be empty, or hold only the folder's marker
            page, asked = self._page(uri, asked, prefix + last if last else "")
            items += page
            last = page[-1].uri.removeprefix(f"s3://{bucket}/{prefix}") if page else last
        return [item for item in items if not is_folder_marker(item)], last, bool(asked)

    def glob(self, pattern: str) -> Iterator[Stored]:
        """Lists what begins like the pattern, and yields the objects that match."""
        _, path = self.open(pattern)
        wanted = NamePattern(path)
        bucket, slash, prefix = wanted.stem.partition("/")
        if not slash:
            raise StorageError(f"{pattern}: a bucket must be named without wildcards")
        deeper = "/" in path[len(wanted.stem) :] or "**" in path
        for item in self._keys(pattern, bucket, prefix, "" if deeper else "/"):
            if wanted.matches(item.uri.removeprefix("s3://")) and not is_folder_marker(item):
                yield item

    def _keys(self, uri: str, bucket: str, prefix: str, delimiter: str = "") -> Iterator[Stored]:
        asked = {"Bucket": bucket, "Prefix": prefix, "Delimiter": delimiter}
        last = ""
        while asked:
            items, asked = self._page(uri, asked, last)
            last = items[-1].uri.split("/", 3)[3] if items else last
            yield from items

    def _page(
        self, uri: str, asked: dict[str, str], last: str
    ) -> tuple[list[Stored], dict[str, str]]:
        """Lists one page. It is tried again by itself: a listing may have ten thousand of them.

        Returns:
            The objects, and what to ask for the next page: nothing after the last one.

        Raises:
            StorageError: A key is not above the one before it, at first `last`.
        """
        fs, _ = self.open(uri)

        listing = attempt(uri, lambda: _call(fs, "list_objects_v2", PAGE_BYTES, **asked))
        found = listing.get("Contents", ())
        keys = [item["Key"] for item in found]
        for before, key in pairwise([last, *keys]):
            if not isinstance(key, str) or key <= before:  # botocore makes a list of several keys
                raise StorageError(
                    f"{uri}: the store lists {key!r} after {before!r}; only the order of the keys "
                    "shows that a listing is whole, so this store cannot be listed"
                )
        root = f"s3://{asked['Bucket']}/"
        items = [
            Stored(root + key, item["Size"], _identity(item), item.get("LastModified"))
            for key, item in zip(keys, found, strict=True)
        ]
        if not listing.get("IsTruncated"):
            return items, {}
        token = {"ContinuationToken": listing["NextContinuationToken"]}
        return items, {name: value for name, value in asked.items() if name != "StartAfter"} | token


def _identity(item: Details) -> str:
    """Returns what tells the content of an object in a page from another: mostly its ETag."""
    etag = item.get("ETag")
    return etag.strip('"') if etag else identity_of({**item, "size": item["Size"]})


async def _in_time(fs: Any, call: Callable[[], Awaitable[Any]], size: int = 0) -> Any:
    """Makes one call, within the time for `size` bytes, once there is a client to make it."""
    try:
        _prepare(await fs.set_session())
        async with within(RetrySettings.from_environment().seconds_for(size)):
            return await call()
    except Exception as error:
        if isinstance(error, PermissionError) or type(error).__name__ == "NoCredentialsError":
            type(fs).clear_instance_cache()  # else this process would never see other credentials
        raise


def _prepare(client: Any) -> None:
    """Has a client's requests counted from now on, and its pages of listings read by us."""
    if client not in _PREPARED:
        _PREPARED.add(client)
        client.meta.events.register(BEFORE_SEND, lambda **_: count_requests())
        client.meta.events.register(BEFORE_PARSE, take_objects)


def _call(fs: Any, method: str, size: int, **arguments: Any) -> dict[str, Any]:
    """Calls the client of S3; `size` is the number of bytes that go or come with the call."""
    answer = sync(fs.loop, _in_time, fs, lambda: fs._call_s3(method, **arguments), size)
    return cast(dict[str, Any], answer)


def _bucket_and_key(path: str) -> tuple[str, str]:
    """Cuts at the first slash and nowhere else: s3fs would cut a key at `?versionId=`."""
    bucket, _, key = path.partition("/")
    return bucket, key
