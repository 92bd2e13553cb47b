"""Tests that a page of a listing reads as botocore reads it, and that odd pages are left to it."""

from __future__ import annotations

from typing import Any
from xml.sax.saxutils import escape

import botocore.parsers
import botocore.session
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.storage.listing_pages import take_objects

SPACE = ' xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'
SHAPE = (
    botocore.session.get_session()
    .get_service_model("s3")
    .operation_model("ListObjectsV2")
    .output_shape
)


def parsed(body: bytes, status: int = 200) -> dict[str, Any]:
    answer = {"body": body, "headers": {}, "status_code": status}
    return dict(botocore.parsers.create_parser("rest-xml").parse(answer, SHAPE))  # type: ignore[no-untyped-call]  # botocore has no types


def parsed_with_us(body: bytes, status: int = 200) -> dict[str, Any]:
    answer: dict[str, Any] = {"body": body, "headers": {}, "status_code": status}
    taken: dict[str, Any] = {}
    take_objects(response_dict=answer, customized_response_dict=taken, operation_model=None)
    return parsed(answer["body"], status) | taken


def page(objects: str, space: str = SPACE, more: str = "") -> bytes:
    return (
        f'<?xml version="1.0" encoding="UTF-8"?>\n<ListBucketResult{space}><Name>b</Name>'
        "<Prefix>a/</Prefix><KeyCount>2</KeyCount><MaxKeys>1000</MaxKeys>"
        f"<IsTruncated>true</IsTruncated>{objects}<NextContinuationToken>n</NextContinuationToken>"
        f"<EncodingType>url</EncodingType>{more}</ListBucketResult>"
    ).encode()


def listed(key: str, size: int, etag: str, more: str = "") -> str:
    return (
        f"<Contents><Key>{escape(key)}</Key><LastModified>2026-11-27T10:00:00.123Z</LastModified>"
        f"<ETag>&quot;{etag}&quot;</ETag><Size>{size}</Size>{more}"
        "<StorageClass>STANDARD</StorageClass></Contents>"
    )


OWNER = "<Owner><ID>1</ID><DisplayName>me</DisplayName></Owner>"
NO_CONTROLS = st.characters(min_codepoint=32, exclude_categories=["Cs", "Cc", "Cn"])
OBJECTS = st.lists(
    st.builds(
        listed,
        st.text(NO_CONTROLS, min_size=1).filter(lambda key: key.strip() == key),
        st.integers(0, 2**63 - 1),
        st.text("0123456789abcdef-", min_size=1),
        st.sampled_from(["", OWNER]),
    ),
    max_size=5,
).map("".join)


@settings(deadline=None)
@given(
    OBJECTS,
    st.sampled_from([SPACE, ""]),
    st.sampled_from(["", "<CommonPrefixes><Prefix>a/b/</Prefix></CommonPrefixes>"]),
)
def test_a_page_reads_as_botocore_reads_it(objects: str, space: str, more: str) -> None:
    body = page(objects, space, more)
    theirs, ours = parsed(body), parsed_with_us(body)
    for item in theirs.get("Contents", ()):
        for name in ("Owner", "StorageClass"):  # nobody asks for them
            item.pop(name, None)
    assert ours == theirs


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"<Error><Code>SlowDown</Code><Message>wait</Message></Error>", 503),
        (b"<Error><Code>InternalError</Code><Message>x</Message></Error>", 200),
        (page(""), 200),
    ],
)
def test_what_has_no_objects_is_left_to_botocore(body: bytes, status: int) -> None:
    answer: dict[str, Any] = {"body": body, "status_code": status}
    taken: dict[str, Any] = {}
    take_objects(answer, taken)
    assert (answer["body"], taken) == (body, {})


@pytest.mark.parametrize(
    "body",
    [
        page(listed("a", 1, "e"))[:-30],
        page(listed("a", 1, "e")).replace(b"<Size>1", b"<Size>one"),
        page(listed("a", 1, "e")).replace(b"2026-11-27T", b"on a Friday "),
        b"no xml",
    ],
    ids=["torn", "size", "time", "text"],
)
def test_what_cannot_be_read_is_an_error_of_botocore(body: bytes) -> None:
    answer: dict[str, Any] = {"body": body, "headers": {}, "status_code": 200}
    taken: dict[str, Any] = {}
    take_objects(answer, taken)
    assert (answer["body"], taken) == (body, {})
    with pytest.raises((botocore.parsers.ResponseParserError, ValueError)):
        parsed(answer["body"])


def test_an_object_that_lacks_a_field_is_read_by_botocore() -> None:
    body = page(listed("a", 1, "e").replace("<ETag>&quot;e&quot;</ETag>", ""))
    assert [item["Key"] for item in parsed_with_us(body)["Contents"]] == ["a"]
    assert parsed_with_us(body) == parsed(body)
