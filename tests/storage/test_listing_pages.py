"""Tests that a page of a listing reads as botocore reads it, and that odd pages are left to it."""

from __future__ import annotations

import re
from typing import Any
from xml.sax.saxutils import escape

import botocore.parsers
import botocore.session
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.storage import listing_pages
from pipeline.storage.listing_pages import take_objects

SPACE = ' xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'
MODEL = botocore.session.get_session().get_service_model("s3").operation_model("ListObjectsV2")
SHAPE = MODEL.output_shape


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


def listed(key: str, size: int, etag: str, more: str = "", second: int = 0) -> str:
    return (
        f"<Contents><Key>{escape(key)}</Key>"
        f"<LastModified>2026-11-27T10:00:{second:02}.123Z</LastModified><ETag>"
        f"&quot;{etag}&quot;</ETag><Size>{size}</Size>{more}"
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
    assert ours == without_what_nobody_asks_for(theirs)


def without_what_nobody_asks_for(page: dict[str, Any]) -> dict[str, Any]:
    for item in page.get("Contents", ()):
        for name in ("Owner", "StorageClass", "ChecksumAlgorithm", "ChecksumType"):
            item.pop(name, None)
    return page


PLAIN_KEYS = st.text(st.characters(min_codepoint=32, max_codepoint=126, exclude_characters="<>&"))

PLAIN_PAGES = st.lists(
    st.builds(
        listed,
        PLAIN_KEYS.filter(bool),
        st.integers(0, 10**18 - 1),
        st.text("0123456789abcdef-", max_size=9),
        st.sampled_from(["", OWNER, "<ChecksumAlgorithm>CRC32</ChecksumAlgorithm>"]),
        st.integers(0, 59),
    ),
    min_size=1,
    max_size=4,
).map(lambda objects: page("".join(objects)).decode())


@settings(deadline=None)
@given(PLAIN_PAGES)
def test_a_page_as_s3_writes_it_takes_no_xml_parser(body: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(listing_pages, "_parsed", lambda body: pytest.fail("it is parsed"))
        ours = parsed_with_us(body.encode())
    assert ours == without_what_nobody_asks_for(parsed(body.encode()))


ODD_PIECES = (
    "<!--", "-->", "<![CDATA[", "]]>", "&amp;", "&lt;", "&#34;", "&#x41;", "&", "<", ">", '"', "'",
    "<x>", "</x>", "<x/>", "<x y='z'>", "<Contents>", "</Contents>", "<Contents/>", "<Key>",
    "</Key>", "<Key>b</Key>", "<Owner>", "</Owner>", "</ListBucketResult>", "<ListBucketResult>",
    "<CommonPrefixes><Prefix>a/</Prefix></CommonPrefixes>", "<?xml version='1.0'?>", "<?a?>",
    "\n", "\r\n", "\t", "\0", "\x7f", "%41", "+", "é", "\ufffe", "0", "-", "Z", "", " ",
)  # fmt: skip


@settings(deadline=None, max_examples=400)
@given(PLAIN_PAGES, st.data())
def test_an_odd_page_reads_as_botocore_reads_it(body: str, data: st.DataObject) -> None:
    """A piece is put at the end or the beginning of a tag, or in its middle, or takes its place."""
    for _ in range(data.draw(st.integers(1, 2))):
        tag = data.draw(st.sampled_from(list(re.finditer("<[^>]*>", body))))
        start = data.draw(st.sampled_from([tag.start(), tag.start() + 1, tag.end()]))
        stop = data.draw(st.sampled_from([start, tag.end()]))
        body = body[:start] + data.draw(st.sampled_from(ODD_PIECES)) + body[max(start, stop) :]
    assert read_or_refused(parsed_with_us, body) == read_or_refused(parsed, body)


TWO = listed("a", 1, "e") + listed("b", 2, "f")


@pytest.mark.parametrize(
    ("before", "behind"),
    [
        ("<x>", "</x>"),
        ("<!--", "-->"),
        ("<x><!--", "<x>--></x>"),
        ("<![CDATA[", "]]>"),
        ("<Contents/>", ""),
        (listed("0", 1, "e").replace("<Key>", "<Key>b</Key><Key>"), ""),
        (listed("0", 1, "e").replace("<ETag>", "<ETag>b</ETag><ETag>"), ""),
        ("", "<Contents>c</Contents>"),
        ("</ListBucketResult><ListBucketResult>", ""),
        ("", "</ListBucketResult><ListBucketResult>"),
    ],
)
def test_objects_that_are_not_all_of_the_page_are_read_as_botocore_reads_them(
    before: str, behind: str
) -> None:
    body = page(before + TWO + behind).decode()
    assert read_or_refused(parsed_with_us, body) == read_or_refused(parsed, body)


def test_botocore_looks_for_errors_in_what_is_left_of_a_page() -> None:
    """It would parse the whole page for that."""
    client = botocore.session.get_session().create_client("s3", "us-east-1")
    client.meta.events.register(listing_pages.BEFORE_PARSE, take_objects)
    answer = {"body": page(TWO), "headers": {}, "status_code": 200}
    called = client.meta.events.emit(
        "before-parse.s3.ListObjectsV2",
        operation_model=MODEL,
        response_dict=answer,
        customized_response_dict={},
    )
    handlers = [handler for handler, _ in called]
    assert handlers[0] is take_objects
    assert len(handlers) > 1
    assert answer["body"] == page("")


def read_or_refused(read: Any, body: str) -> Any:
    try:
        found = without_what_nobody_asks_for(read(body.encode()))
    except (botocore.parsers.ResponseParserError, ValueError, TypeError, KeyError):
        return "refused"
    # Of a field that an object has twice, botocore makes a list of elements. `S3Store` refuses it.
    fields = [value for item in found.get("Contents", ()) for value in item.values()]
    return "refused" if any(isinstance(value, list) for value in fields) else found


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
