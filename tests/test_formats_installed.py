"""Formats of third parties: what they may do, and that nothing that they do harms anybody."""

from __future__ import annotations

import importlib.util
import logging
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

import pytest
from messages import JSON, LIMIT, envelope, message, ruote

from taskqueue import formats
from taskqueue.errors import FormatError
from taskqueue.formats import Extracted, Format, Formats, Installed, failed_result, known, parse, value
from taskqueue.workitem import Workitem

ROTTEN = Path(__file__).parent / "formats" / "rotten"
NONE: Mapping[str, str] = {}


class Colon:
    def extract(self, workitem: Workitem) -> Extracted:
        type, _, rest = workitem.body.decode().partition(":")
        return Extracted(type=type, body=rest.encode(), content_type=workitem.content_type, reference="r")

    def value(self, body: bytes, content_type: str) -> object:
        return body.decode().split(":")


def with_own(format: Format, *, default: str = "", read_as: Mapping[str, str] = NONE) -> Formats:
    return Formats(known={**formats.BUILTIN, "text/colon": format}, default=default, read_as=read_as)


def refusal(body: bytes, format: Format) -> str:
    with pytest.raises(FormatError) as caught:
        parse(message(body, "text/colon"), max_body=LIMIT, formats=with_own(format))
    return caught.value.detail


@pytest.fixture
def rotten(monkeypatch: pytest.MonkeyPatch) -> Installed:
    monkeypatch.syspath_prepend(ROTTEN)
    return Installed("text/colon", "rotten_formats:Rotten")


# --- what a format can do ---


def test_a_third_party_brings_a_format() -> None:
    own = with_own(Colon())

    bare = parse(message(b"t:a:b", "Text/Colon; x=y"), max_body=LIMIT, formats=own)

    assert (bare.type, bare.body, bare.content_type, bare.reference) == ("t", b"a:b", "Text/Colon; x=y", "r")
    assert value(bare.body, bare.content_type, own) == ["a", "b"]
    assert value(bare.body, bare.content_type) == b"a:b"


def test_a_body_without_content_type_is_read_as_the_default() -> None:
    own = with_own(Colon(), default="text/colon")

    bare = parse(message(b"t:a:b", ""), max_body=LIMIT, formats=own)

    assert (bare.type, bare.body, bare.content_type) == ("t", b"a:b", "text/colon")
    assert value(b"a:b", "", own) == ["a", "b"]
    assert parse(message(b"t a:b", "text/plain"), max_body=LIMIT, formats=own).body == b"a:b"


def test_a_content_type_is_read_as_the_one_that_it_is_mapped_to() -> None:
    own = with_own(Colon(), read_as={"text/json": JSON, "json": "text/colon", "text/plain": "text/colon"})

    latin = parse(message(envelope('"\u00fc"').decode().encode("latin-1"), "Text/JSON; charset=latin-1"),
                  max_body=LIMIT, formats=own)  # fmt: skip
    whole = parse(message(ruote(), "text/json"), max_body=LIMIT, formats=own)

    assert (latin.body, latin.content_type) == ('"\u00fc"'.encode(), JSON)
    assert (whole.body, whole.content_type) == (ruote(), JSON)
    assert value(b"[1]", "text/json", own) == [1]
    assert value(b"a:b", "json", own) == value(b"a:b", "text/plain", own) == ["a", "b"]
    assert b"trace" in failed_result(message(ruote(), "text/json"), "e", "trace", own).body
    assert failed_result(message(ruote(), "text/json"), "e", "trace").body == b"null"


def test_a_type_in_the_header_leaves_body_and_content_type_untouched_in_spite_of_the_map() -> None:
    own = with_own(Colon(), default=JSON, read_as={"text/json": JSON})

    for content_type in ("", "text/json"):
        bare = parse(message(b"{", content_type, headers={"worker_type": "t"}), max_body=LIMIT, formats=own)
        assert (bare.body, bare.content_type) == (b"{", content_type)


# --- what a format must not do ---


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        ("raise", "the format text/colon failed: RuntimeError: rotten on purpose"),
        ("exit", "the format text/colon failed: SystemExit: rotten on purpose"),
        ("interrupt", "the format text/colon failed: KeyboardInterrupt"),
        ("memory", "the format text/colon failed: MemoryError"),
        ("speechless", "the format text/colon failed: rotten_formats.Speechless: <exception str() failed>"),
        ("speechless refusal", "<exception str() failed>"),
        ("recursion", "the format text/colon failed: RecursionError: maximum recursion depth exceeded"),
        ("refuse", "refused on purposexxx"),
        ("change", "the format text/colon failed: TypeError"),
        ("type", "the format text/colon failed: TypeError: extract returned an Extracted whose type is no str"),
        ("body", "whose body is no bytes"),
        ("content type", "whose content_type is no str"),
        ("reference", "whose reference is no str"),
        ("nothing", "extract returned NoneType, expected Extracted"),
        ("large", f"the workitem in it has {1 << 24} bytes, more than max_body"),
        ("wrong type", "'../echo' is no valid worker type"),
    ],
)
def test_whatever_a_format_does_is_a_reason(body: str, detail: str, rotten: Installed) -> None:
    found = refusal(body.encode(), rotten)

    assert detail in found
    assert found.isprintable()
    assert len(found) < 300


def test_what_a_format_does_in_front_of_a_handler_is_a_reason(rotten: Installed) -> None:
    for body in (b"raise", b"exit", b"interrupt", b"memory", b"speechless", b"recursion"):
        with pytest.raises(FormatError, match="the format text/colon failed"):
            value(body, "text/colon", with_own(rotten))


@pytest.mark.parametrize(
    ("entry_point", "reason"),
    [
        ("missing_formats:Missing", "SystemExit: missing on purpose"),
        ("rotten_formats:Nothing", "AttributeError: module 'rotten_formats' has no attribute 'Nothing'"),
        ("rotten_formats:ROTTEN", "AttributeError"),
        ("rotten_formats:Incomplete", "TypeError: a format needs a method value"),
        ("rotten_formats:__name__", "PluginError"),
        ("no_such_module:X", "ModuleNotFoundError"),
        ("rotten_formats:sys.exit", "SystemExit"),
    ],
)
def test_a_format_that_does_not_load_is_reported_once_with_its_traceback(
    entry_point: str, reason: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.syspath_prepend(ROTTEN)
    broken = Installed("text/colon", entry_point)

    broken.load()
    first, second = refusal(b"x", broken), refusal(b"x", broken)

    assert first == second
    assert "the format text/colon does not load" in first and reason in first
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert f"the format text/colon ({entry_point}) does not load" in record.getMessage()
    assert "Traceback (most recent call last)" in record.getMessage() and reason in record.getMessage()


def test_what_goes_wrong_in_a_format_is_reported_once_and_its_refusals_are_not(
    rotten: Installed, caplog: pytest.LogCaptureFixture
) -> None:
    refusal(b"refuse", rotten)
    assert caplog.records == []

    for body in (b"raise", b"exit", b"nothing", b"raise"):
        refusal(body, rotten)

    (record,) = caplog.records
    assert "the format text/colon (rotten_formats:Rotten) failed" in record.getMessage()
    assert "RuntimeError: rotten on purpose" in record.getMessage()
    assert "Traceback (most recent call last)" in record.getMessage()


def test_a_format_goes_on_after_it_has_failed(rotten: Installed) -> None:
    refusal(b"raise", rotten)

    assert parse(message(b"fine", "text/colon"), max_body=LIMIT, formats=with_own(rotten)).body == b"fine"


def test_a_format_is_imported_when_it_is_first_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROTTEN)
    monkeypatch.delitem(sys.modules, "rotten_formats", raising=False)

    own = known({"text/colon": "rotten_formats:Rotten"}, default="", read_as={})
    parse(message(envelope("1")), max_body=LIMIT, formats=own)
    before = "rotten_formats" in sys.modules
    parse(message(b"x", "text/colon"), max_body=LIMIT, formats=own)

    assert not before
    assert "rotten_formats" in sys.modules


def test_formats_are_found_by_content_type_and_others_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def installed(*, group: str) -> list[metadata.EntryPoint]:
        points = {
            "application/x-b": "b:B",
            "application/x-a": "a:A",
            "application/json": "c:C",
            "Text/X": "d:D",
            "own": "e:E",
        }
        return [metadata.EntryPoint(name, value, group) for name, value in points.items()] + [
            metadata.EntryPoint("application/x-a", "z:Z", group)
        ]

    monkeypatch.setattr(metadata, "entry_points", installed)

    found, problems = formats.discover()

    assert found == {"application/x-a": "a:A", "application/x-b": "b:B"}
    assert problems == (
        "entry point 'Text/X' = 'd:D' in workitems: the name is no content type in lower case, "
        "such as application/x-own",
        "entry point 'application/json' = 'c:C' in workitems: this format is built in",
        "content type 'application/x-a' is claimed by 'a:A' and 'z:Z'; the first one is used",
        "entry point 'own' = 'e:E' in workitems: the name is no content type in lower case, such as application/x-own",
    )


# --- examples/formdata ---

EXAMPLE = Path(__file__).parents[1] / "examples" / "formdata" / "formdata.py"
FORM = "application/x-www-form-urlencoded"


@pytest.fixture(scope="module")
def formdata() -> Formats:
    spec = importlib.util.spec_from_file_location("formdata", EXAMPLE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return Formats(known={**formats.BUILTIN, FORM: module.FormData()})


def test_the_fields_of_a_form_are_its_workitem(formdata: Formats) -> None:
    body = b"worker_type=t&reference=order%3A4711&path=/etc/pass+wd&name=gr%C3%BC%C3%9Fe&tag=a&tag=b&empty="

    bare = parse(message(body, f"{FORM}; charset=utf-8"), max_body=LIMIT, formats=formdata)

    assert (bare.type, bare.reference, bare.content_type) == ("t", "order:4711", JSON)
    expected = {"path": "/etc/pass wd", "name": "gr\u00fc\u00dfe", "tag": ["a", "b"], "empty": ""}
    assert value(bare.body, bare.content_type, formdata) == expected
    assert value(b"path=x&tag=a&tag=b", FORM, formdata) == {"path": "x", "tag": ["a", "b"]}
    assert value(b"", FORM, formdata) == {}


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        (b"", "expected worker_type once, and it is there 0 times"),
        (b"a=1", "expected worker_type once, and it is there 0 times"),
        (b"worker_type=a&worker_type=b", "expected worker_type once, and it is there 2 times"),
        (b"worker_type=a&reference=b&reference=c", "expected reference once"),
        (b"worker_type", "no form data: bad query field"),
        (b"worker_type=a&x=%FF", "no form data"),
        (b"worker_type=a&x=\xff", "no form data"),
        (b"worker_type=a" + b"&x=1" * 1000, "no form data: Max number of fields exceeded"),
        (b"worker_type=a/b", "no valid worker type"),
    ],
)
def test_what_is_no_form_is_refused_with_the_reason(body: bytes, detail: str, formdata: Formats) -> None:
    with pytest.raises(FormatError) as caught:
        parse(message(body, FORM), max_body=LIMIT, formats=formdata)

    assert detail in caught.value.detail
