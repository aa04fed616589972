"""Bodies: what is refused and how it is said; what is spliced, and that nothing else changes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollgate.wire.body import Body, BodyError

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
OBJECTS = st.dictionaries(st.text(), VALUES, max_size=5)
STYLES = st.fixed_dictionaries(
    {
        "ensure_ascii": st.booleans(),
        "indent": st.sampled_from([None, 1]),
        "separators": st.sampled_from([None, (",", ":")]),
    }
)


@given(OBJECTS, STYLES)
def test_reads_what_json_reads(value: dict[str, Any], style: dict[str, Any]) -> None:
    text = json.dumps(value, **style).encode("utf-8", "surrogatepass")
    try:
        text.decode()
    except UnicodeDecodeError:
        with pytest.raises(BodyError, match="UTF-8"):
            Body(text)
        return
    body = Body(text)
    assert body.fields == value
    assert body.splice({}) is text


@given(OBJECTS, st.dictionaries(st.text(st.characters(codec="utf-8")), VALUES, max_size=3), STYLES)
def test_splice_sets_just_these(value: dict[str, Any], changes: dict[str, Any], style: dict[str, Any]) -> None:
    style = style | {"ensure_ascii": True}
    spliced = Body(json.dumps(value, **style).encode()).splice({k: json.dumps(v) for k, v in changes.items()})
    assert json.loads(spliced) == value | changes
    assert Body(spliced).fields == value | changes


def test_splice_leaves_every_other_byte() -> None:
    raw = ' {\t"x":1e2 , "mod\\u0065l" : "a","y" : "ü\\u00fc" }\n'.encode()
    assert Body(raw).splice({"model": '"b"', "z": "true"}) == (
        ' {"z":true,\t"x":1e2 , "mod\\u0065l" : "b","y" : "ü\\u00fc" }\n'.encode()
    )
    assert Body(b"{ }").splice({"z": "1", "a": "2"}) == b'{"z":1,"a":2 }'


@pytest.mark.parametrize(
    ("raw", "code", "says"),
    [
        (b"", "invalid_json", "Unexpected end (line 1 column 1)"),
        (b" \n ", "invalid_json", "Unexpected end (line 2 column 2)"),
        (b"{", "invalid_json", "line 1 column 2"),
        (b'{"a"', "invalid_json", "Unexpected end (line 1 column 5)"),
        (b'{"a" 1}', "invalid_json", "Expecting ':'"),
        (b'{"a":1 2}', "invalid_json", "Expecting ','"),
        (b'{"a":1\x002}', "invalid_json", "Expecting ','"),
        (b'{"a":\x0b1}', "invalid_json", "Expecting value"),
        (b'{"a":[' + b"{}," * 30_000, "invalid_json", "20000 objects"),
        (b"{" + b",".join(b'"%d":1' % n for n in range(1_001)) + b"}", "invalid_json", "1000 members"),
        (b'{"a":', "invalid_json", "Unexpected end (line 1 column 6)"),
        (b'{"a":1', "invalid_json", "Unexpected end"),
        (b'{"a":1,}', "invalid_json", "property name"),
        (b'{"a":1}\n{}', "invalid_json", "Extra data (line 2 column 1)"),
        (b"{'a':1}", "invalid_json", "double quotes"),
        (b'{"a":tru}', "invalid_json", "Expecting value"),
        (b'{"a":"\n"}', "invalid_json", "control character"),
        (b'{"a":"\\x"}', "invalid_json", "escape"),
        (b'{"a":[1,2}', "invalid_json", "line 1 column 10"),
        (b'{"a":NaN}', "invalid_json", "NaN"),
        (b'{"a":[{"b":-Infinity}]}', "invalid_json", "-Infinity"),
        (b"NaN", "invalid_json", "NaN"),
        (b'{"a":"\xff"}', "invalid_json", "UTF-8 (byte 6)"),
        (b"\xef\xbb\xbf{}", "invalid_json", "line 1 column 1"),
        (b'{"a":' + b"[" * 200_000, "invalid_json", "nested too deeply"),
        (b'{"a":' + b'{"a":' * 200_000, "invalid_json", "nested too deeply"),
        (b'{"a":' + b"9" * 5_000 + b"}", "invalid_json", "too many digits"),
        (b"[]", "invalid_type", "must be a JSON object"),
        (b'"text"', "invalid_type", "must be a JSON object"),
        (b"[] []", "invalid_json", "Extra data"),
        (b'{"a":1,"\\u0061":2}', "duplicate_key", "'a' occurs twice"),
        (b'{"b":[{"a":1,"a":1}]}', "invalid_json", "'a' occurs twice"),
    ],
)
def test_refuses(raw: bytes, code: str, says: str) -> None:
    with pytest.raises(BodyError) as caught:
        Body(raw)
    assert caught.value.status == 400
    assert caught.value.code == code
    assert says in caught.value.message
    json.loads(caught.value.body())


@given(st.binary() | st.text(alphabet='{}[]":,01eEtrufalsn \\\n.-').map(str.encode))
def test_nothing_but_a_body_error(raw: bytes) -> None:
    try:
        body = Body(raw)
    except BodyError:
        return
    assert body.fields == json.loads(raw)


def test_the_message_of_a_duplicate_names_its_field() -> None:
    with pytest.raises(BodyError) as caught:
        Body(b'{"model":"a","model":"b"}')
    assert caught.value.param == "model"
