"""Tests the names of places: one spelling for each, with no secret in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline import storage
from pipeline.errors import SourceError, UsageError
from pipeline.storage.uris import with_query


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("/a/b/../c.jpg", "file:///a/c.jpg"),
        ("file:///a//b/", "file:///a/b"),
        ("/a/ä b#c?.jpg", "file:///a/%C3%A4%20b%23c%3F.jpg"),
        ("s3://bucket/a::b.jpg", "s3://bucket/a::b.jpg"),
        ("S3://bucket/x/", "s3://bucket/x"),
        ("memory:///x", "memory://x"),
        ("s3:///x", "s3:///x"),
        ("s3://bucket/a://b", "s3://bucket/a://b"),
        ("local:///a", "file:///a"),
        ("file:/a/b", "file:///a/b"),
        ("FILE://localhost/a/b", "file:///a/b"),
        ("HTTPS://host/a.jpg/", "https://host/a.jpg/"),  # may be another page than /a.jpg
    ],
)
def test_a_url_has_one_canonical_form(url: str, expected: str) -> None:
    assert storage.canonical(url) == expected
    assert storage.canonical(expected) == expected


def test_an_empty_place_is_refused_as_a_variable_that_is_not_set_gives_one() -> None:
    with pytest.raises(UsageError, match="a path or url is empty; name the place"):
        storage.canonical("")


@pytest.mark.parametrize("url", ["file://", "file://photos/a.jpg", "local://a.jpg"])
def test_the_url_of_a_local_file_without_the_root_of_the_disk_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match="is no url of a local file; write the plain path"):
        storage.canonical(url)


def test_a_place_lies_in_a_folder_by_its_name_or_by_links(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "a")
    (tmp_path / "a" / "out").symlink_to(tmp_path / "elsewhere")
    a, link = (tmp_path / "a").as_uri(), (tmp_path / "link").as_uri()
    for place, folder in ((a, a), (f"{a}/b", a), (f"{a}/b/c", link), (f"{link}/b", a), (link, a)):
        assert storage.lies_in(place, folder)
        assert storage.lies_in(place, "file:///")
    assert storage.lies_in(f"{a}/out/x", a)  # listed there, wherever its bytes are
    assert storage.lies_in((tmp_path / "elsewhere" / "x").as_uri(), f"{a}/out")
    assert storage.lies_in(f"{link}/out/x", a)  # found there by both links
    assert not storage.lies_in(a, f"{a}/b")
    assert not storage.lies_in(f"{a}bc", a)
    assert storage.lies_in("s3://bucket/a/b", "s3://bucket/a")
    assert not storage.lies_in("s3://bucket/ab", "s3://bucket/a")
    assert not storage.lies_in("s3://bucket/a", a)
    assert not storage.lies_in(a, "s3://bucket/a")


def test_relative_and_home_paths_become_file_urls(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert storage.canonical("x/./y") == (tmp_path / "x" / "y").as_uri()
    assert storage.canonical("~/x").startswith("file:///")
    assert storage.local_path(storage.canonical("ä b")) == str(tmp_path / "ä b")


def test_two_dots_behind_a_link_lead_above_the_folder_it_names(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "disk" / "photos").mkdir(parents=True)
    (tmp_path / "work").mkdir()
    link = tmp_path / "work" / "link"
    link.symlink_to(tmp_path / "disk" / "photos")
    for folder in ("disk", "work"):
        (tmp_path / folder / "a.png").write_text(folder)
        (tmp_path / folder / "..a.png").write_text(folder)
    monkeypatch.chdir(tmp_path / "work")
    for path in ("link/../a.png", f"{link}/../a.png", "link/../..a.png"):
        uri = storage.canonical(path)
        assert Path(storage.local_path(uri)).read_text() == Path(path).read_text() == "disk"
    assert [file.uri for file in storage.glob("link/../a.*")] == [
        storage.canonical("link/../a.png")
    ]
    (tmp_path / "disk" / "alias").symlink_to(tmp_path / "disk" / "photos")
    alias = tmp_path / "disk" / "alias" / "x.png"
    assert storage.canonical("link/../alias/x.png") == alias.as_uri()
    # elsewhere the links stay as they were written, so that a path keeps its uri
    for path in ("link/./x.png", "link/no/../x.png", "../work/link/x.png"):
        assert storage.canonical(path) == (link / "x.png").as_uri()


@pytest.mark.parametrize(
    "url",
    [
        "https://b.s3.amazonaws.com/k.jpg?X-Amz-Signature=topsecret",
        *(f"https://host/x.jpg?{name}=topsecret" for name in ("key", "subscription-key", "pass")),
        *(f"https://host/x.jpg?{name}=topsecret" for name in ("code", "secretkey", "hmac", "n")),
        "https://host/x.jpg?session=topsecret",
        "https://host/x.jpg?topsecret",
        "http://host/x.jpg?topsecret",
        "https://host/x.jpg#access_token=topsecret",
        "https://host/x.jpg#topsecret",
        "s3://bucket/x.jpg?code=topsecret",
        "gs://bucket/x.jpg#token=topsecret",
    ],
)
def test_a_query_or_a_fragment_is_refused_without_being_shown(url: str) -> None:
    with pytest.raises(UsageError, match="`allow_query=") as caught:
        storage.canonical(url)
    assert "topsecret" not in str(caught.value)
    assert "topsecret" not in str(UsageError(f"cannot read {url}"))


def test_an_allowed_parameter_is_kept_and_a_reference_stays_a_reference() -> None:
    url = "https://host/x.jpg?id=ab12&key=${VDNA_QUERY_KEY}"
    assert storage.canonical(url, queries={"id", "key"}) == url
    ends_in_a_slash = "http://host/x?id=a/"
    assert storage.canonical(ends_in_a_slash, queries={"id"}) == ends_in_a_slash
    by_its_name = "https://host/x.jpg?api_key=${VDNA_QUERY_KEY}"
    assert storage.canonical(by_its_name, queries={"api_key"}) == by_its_name
    for queries in ((), {"id"}, {"key"}):
        with pytest.raises(UsageError, match="`allow_query="):
            storage.canonical(url, queries=queries)


@pytest.mark.parametrize(
    "rest", ["?id=1;sig=x", "?id=1&sig=x", "?sig=x", "?id=1#a", "?id=1&token=x", "#id=1"]
)
def test_what_is_not_allowed_by_name_is_refused_beside_what_is(rest: str) -> None:
    with pytest.raises(UsageError, match="`allow_query="):
        storage.canonical(f"https://host/x.jpg{rest}", queries={"id", "token"})


def test_a_list_cannot_ask_for_any_variable_of_the_environment() -> None:
    with pytest.raises(UsageError, match="AWS_SECRET_ACCESS_KEY; only variables"):
        storage.canonical("https://host/x?id=${AWS_SECRET_ACCESS_KEY}", queries={"id"})


def test_keys_of_a_store_may_have_question_marks_and_hashes() -> None:
    for url in ("s3://bucket/a?.jpg", "s3://bucket/a#1.jpg", "s3://bucket/day?/x=1/a.jpg"):
        assert storage.canonical(url) == url


@pytest.mark.parametrize(
    "url",
    [
        "s3://topsecret@bucket/x",
        "https://user:topsecret@host/x",
        "s3://a%2Fb:topsecret@bucket/x",  # decoded, it is a path
        "s3://bucket/x%3Bsecret%3Dtopsecret",
    ],
)
def test_a_name_or_a_password_is_refused_as_it_is_written_and_as_it_is_decoded(url: str) -> None:
    with pytest.raises(UsageError, match="by the store's own settings") as caught:
        storage.canonical(url)
    assert "topsecret" not in str(caught.value)


def test_variables_are_sent_in_queries_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VDNA_QUERY_KEY", "planted")
    monkeypatch.setenv("OTHER", "cd")
    sent = with_query("https://host/x?key=${VDNA_QUERY_KEY}&id=${VDNA_QUERY_KEY}")
    assert sent == "https://host/x?key=planted&id=planted"
    for url in ("https://host/${VDNA_QUERY_KEY}", "s3://b/x?${VDNA_QUERY_KEY}", "https://host/x?a"):
        assert with_query(url) == url
    for name in ("VDNA_QUERY_NONE", "OTHER"):
        with pytest.raises(SourceError, match=f"needs the variable {name}, which is not set"):
            with_query(f"http://host/x?id=${{{name}}}")


def test_local_places_are_shown_as_paths_and_others_as_urls(tmp_path: Path) -> None:
    assert storage.readable("file:///a%20b/c%3A//d%FF") == "/a b/c://d\\udcff"
    assert storage.local_path("file:///a://b") == "/a://b"
    assert storage.readable("s3://bucket/a%20b") == "s3://bucket/a%20b"
    assert storage.spelled("s3://bucket/a.zip", "b") == "s3://bucket/a.zip::b"
    assert storage.spelled("s3://bucket/a.zip") == "s3://bucket/a.zip"
    (tmp_path / "link").symlink_to(tmp_path / "a")
    assert storage.resolved((tmp_path / "link").as_uri()) == (tmp_path / "a").as_uri()
    assert storage.resolved("s3://bucket/a") == "s3://bucket/a"


def test_names_are_joined_by_one_slash() -> None:
    for root in ("s3://bucket/a", "s3://bucket/a/"):
        assert storage.join(root, "b", "c") == "s3://bucket/a/b/c"


def test_a_parquet_file_must_be_called_so() -> None:
    assert storage.parquet_uri("/a/b.parquet", "rows are") == "file:///a/b.parquet"
    with pytest.raises(UsageError, match=r"out is '/a/b.csv'; rows are written as Parquet"):
        storage.parquet_uri("/a/b.csv", "rows are")
