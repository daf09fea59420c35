"""Marshalling both ways, by the contract's rules."""

from __future__ import annotations

import json
import math
import struct
from typing import Any

import numpy as np
import pytest

from puna.worker.app import tensors
from puna.worker.app.schema import AppInput, AppSchema
from puna.worker.app.tensors import (
    BadOutput,
    BadRequest,
    BinaryOutputs,
    read_inputs,
    read_parameters,
    with_binary,
    write_event,
    write_outputs,
)


def schema(*inputs: tuple[str, str, list[int], bool], **flags: Any) -> AppSchema:
    return AppSchema(
        [AppInput(name, kind, shape, required, None) for name, kind, shape, required in inputs], flags, None
    )


def request(**tensors: Any) -> dict[str, Any]:
    """`name=(datatype, shape, data)`."""
    keys = ("datatype", "shape", "data")
    return {"inputs": [{"name": n, **dict(zip(keys, t, strict=True))} for n, t in tensors.items()]}


TEXT = schema(("prompt", "STRING", [1], True))


def test_shape_one_is_a_scalar_and_any_other_a_list() -> None:
    many = schema(("prompt", "STRING", [-1], True))
    assert read_inputs(TEXT, request(prompt=("BYTES", [1], ["hi"]))) == {"prompt": "hi"}
    assert read_inputs(many, request(prompt=("BYTES", [1], ["hi"]))) == {"prompt": "hi"}
    assert read_inputs(many, request(prompt=("BYTES", [2], ["a", "b"]))) == {"prompt": ["a", "b"]}
    nested = schema(("x", "FP32", [-1, 2], True))
    assert read_inputs(nested, request(x=("FP32", [2, 2], [[1, 2], [3, 4]]))) == {"x": [[1.0, 2.0], [3.0, 4.0]]}


def test_shape_and_datatype_may_be_left_out() -> None:
    assert read_inputs(TEXT, {"inputs": [{"name": "prompt", "data": ["hi"]}]}) == {"prompt": "hi"}


@pytest.mark.parametrize(
    ("declared", "sent", "value", "expected"),
    [
        ("FP32", "INT64", 3, 3.0),
        ("INT8", "FP64", 3.0, 3),
        ("INT16", "INT64", -5, -5),
        ("UINT8", "INT64", 200, 200),
        ("BF16", "FP64", 0.5, 0.5),
        ("INT8", "INT64", 768, 768),
    ],
)
def test_numeric_kinds_are_coerced(declared: str, sent: str, value: Any, expected: Any) -> None:
    asked = request(n=(sent, [1], [value]))
    plain = read_inputs(schema(("n", declared, [1], True)), asked)["n"]
    assert plain == expected and type(plain) is type(expected)
    scalar = read_inputs(schema(("n", declared, [1], True)), asked, np)["n"]
    assert scalar == expected and isinstance(scalar, np.generic)


def test_numpy_scalars_have_the_declared_type() -> None:
    kinds = {"INT16": np.int16, "UINT64": np.uint64, "FP16": np.float16, "FP64": np.float64, "BF16": np.float32}
    for kind, expected in kinds.items():
        value = read_inputs(schema(("n", kind, [1], True)), request(n=(kind, [1], [1])), np)["n"]
        assert type(value) is expected
    assert type(read_inputs(schema(("b", "BOOL", [1], True)), request(b=("BOOL", [1], [True])), np)["b"]) is np.bool_


def test_an_absent_optional_is_no_key() -> None:
    both = schema(("a", "STRING", [1], True), ("b", "INT32", [1], False))
    assert read_inputs(both, request(a=("BYTES", [1], ["x"]))) == {"a": "x"}
    assert read_inputs(both, request(a=("BYTES", [1], ["x"]), b=("INT32", [1], [None]))) == {"a": "x"}


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        ({"inputs": []}, "input 'prompt' is required and missing"),
        (
            request(prompt=("BYTES", [1], ["x"]), other=("BYTES", [1], ["x"])),
            "unknown input 'other'; declared are: prompt",
        ),
        (request(prompt=("FP32", [1], [1])), "input 'prompt' was sent as FP32, but is declared as STRING"),
        (request(prompt=("BYTES", [1], [5])), "input 'prompt' takes text, not 5"),
        (request(prompt=("BYTES", [2], ["x"])), "shape [2] takes 2 values, 1 sent"),
        (request(prompt=("BYTES", [2], ["x", "y"])), "shape [2] does not fit the declared [1]"),
        (request(prompt=("BYTES", "no", ["x"])), "must be a list of numbers"),
        ([], "the body must be"),
        ({"inputs": {}}, "the body must be"),
        ({"inputs": [{"data": []}]}, "the body must be"),
    ],
)
def test_a_request_that_does_not_fit_says_why(asked: Any, text: str) -> None:
    with pytest.raises(BadRequest) as caught:
        read_inputs(TEXT, asked)
    assert text in str(caught.value)


@pytest.mark.parametrize(("kind", "value"), [("INT8", 3.5), ("INT8", True), ("INT8", "3"), ("FP32", None), ("BOOL", 1)])
def test_values_of_another_kind_are_refused(kind: str, value: Any) -> None:
    with pytest.raises(BadRequest):
        read_inputs(schema(("n", kind, [1], True)), request(n=(kind, [1], [value])))


def test_an_app_without_a_schema_says_that_it_declares_nothing() -> None:
    with pytest.raises(BadRequest, match="declares no inputs"):
        read_inputs(schema(), request(a=("BYTES", [1], ["x"])))


def test_a_batched_client_may_send_a_leading_one() -> None:
    batched = schema(("prompt", "STRING", [1], True), BATCH_SIZE=4)
    assert read_inputs(batched, request(prompt=("BYTES", [1, 1], ["x"]))) == {"prompt": "x"}


def test_generate_parameters_become_inputs() -> None:
    two = schema(("TEXT", "STRING", [1], True), ("n", "INT32", [1], False))
    assert read_parameters(two, {"parameters": {"TEXT": "hi", "n": 2}}) == {"TEXT": "hi", "n": 2}
    assert read_parameters(two, {"TEXT": "hi"}) == {"TEXT": "hi"}
    with pytest.raises(BadRequest, match="unknown input 'x'"):
        read_parameters(two, {"parameters": {"x": 1}})


@pytest.mark.parametrize(
    ("value", "datatype", "shape", "data"),
    [
        ("hi", "BYTES", [1], ["hi"]),
        (b"hi", "BYTES", [1], ["hi"]),
        (1.5, "FP64", [1], [1.5]),
        (3, "INT64", [1], [3]),
        (2**63, "UINT64", [1], [2**63]),
        (True, "BOOL", [1], [True]),
        (np.float32(0.5), "FP32", [1], [0.5]),
        (np.int8(3), "INT8", [1], [3]),
        (np.bool_(True), "BOOL", [1], [True]),
        (np.str_("s"), "BYTES", [1], ["s"]),
        (["a", "b"], "BYTES", [2], ["a", "b"]),
        ([1.0, 2.0], "FP64", [2], [1.0, 2.0]),
        ([1, 2.5], "FP64", [2], [1, 2.5]),
        ([[1, 2, 3], [4, 5, 6]], "INT64", [2, 3], [1, 2, 3, 4, 5, 6]),
        ([True, False], "BOOL", [2], [True, False]),
        (np.array([[1, 2]], np.int16), "INT16", [1, 1, 2], [1, 2]),
        (np.array(["a", "b"]), "BYTES", [1, 2], ["a", "b"]),
        ([np.array([1.0, 2.0], np.float32)] * 2, "FP32", [2, 2], [1.0, 2.0, 1.0, 2.0]),
        ([], "BYTES", [0], []),
    ],
)
def test_outputs_by_type(value: Any, datatype: str, shape: list[int], data: list[Any]) -> None:
    assert write_outputs({"out": value}) == [{"name": "out", "datatype": datatype, "shape": shape, "data": data}]


@pytest.mark.parametrize("value", [{"a": 1}, (1, 2), [(1, 2)], [{"a": 1}]])
def test_dicts_and_tuples_are_refused_in_the_platforms_words(value: Any) -> None:
    with pytest.raises(BadOutput) as caught:
        write_outputs({"X": value})
    assert str(caught.value) == (
        "Output X is of type dictionary or tuple which is currently not supported. You can try json.dumps(X)"
    )


def test_an_empty_list_is_refused_at_validation_only() -> None:
    with pytest.raises(BadOutput) as caught:
        write_outputs({"X": []}, strict=True)
    assert str(caught.value) == (
        "Output X is empty list which cannot be used to infer the data type. Please provide a non-empty list as output."
    )


@pytest.mark.parametrize(("value", "text"), [("hi", "a str: 'hi'"), (True, "a bool: True"), (None, "None")])
def test_a_result_that_is_no_dict_is_named(value: Any, text: str) -> None:
    with pytest.raises(BadOutput) as caught:
        write_outputs(value)
    assert "must return a dict" in str(caught.value) and text in str(caught.value)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "Output X is None"),
        (object(), "Output X is an object"),
        ([[1], [2, 3]], "ragged"),
        (["a", 1], "mixes BYTES and INT64"),
        (b"\xff", "no UTF-8 text"),
        (2**70, "more than 64 bits"),
        (np.array([1j]), "complex"),
    ],
)
def test_what_cannot_be_sent_is_named(value: Any, text: str) -> None:
    with pytest.raises(BadOutput) as caught:
        write_outputs({"X": value})
    assert text in str(caught.value)


def test_an_event_has_plain_values() -> None:
    assert write_event({"a": "x", "b": [1, 2]}) == {"a": "x", "b": [1, 2]}


def test_not_a_number_passes_as_a_float() -> None:
    (output,) = write_outputs({"x": float("nan")})
    assert math.isnan(output["data"][0])


def test_what_the_platforms_clients_send_besides_is_passed_over() -> None:
    asked = request(prompt=("BYTES", [1], ["hi"])) | {"parameters": {"sequence_id": 1}, "outputs": [{"name": "x"}]}
    asked["inputs"][0] |= {"optional": True, "parameters": {"priority": 3}}
    assert read_inputs(TEXT, asked) == {"prompt": "hi"}


@pytest.mark.parametrize(
    ("key", "why"),
    [("binary_data_size", "the header Inference-Header-Content-Length"), ("shared_memory_region", "is not taken here")],
)
def test_tensors_whose_values_are_elsewhere_are_refused_in_words(key: str, why: str) -> None:
    with pytest.raises(BadRequest, match=f"input 'prompt' has {key}.*{why}"):
        read_inputs(TEXT, {"inputs": [{"name": "prompt", "shape": [1], "datatype": "BYTES", "parameters": {key: 6}}]})


def test_outputs_that_were_declared_must_be_there() -> None:
    assert len(write_outputs({"a": 1, "b": 2}, declared=["a"])) == 2
    with pytest.raises(BadOutput) as caught:
        write_outputs({"b": 2}, declared=["a"])
    assert str(caught.value) == "Requried Output a not found in the inference response; infer returned b"


NUMBERS = [
    ("BOOL", np.bool_), ("INT8", np.int8), ("INT16", np.int16), ("INT32", np.int32), ("INT64", np.int64),
    ("UINT8", np.uint8), ("UINT16", np.uint16), ("UINT32", np.uint32), ("UINT64", np.uint64), ("FP16", np.float16),
    ("FP32", np.float32), ("FP64", np.float64),
]  # fmt: skip


def document(*tensors: tuple[str, str, list[int], int]) -> dict[str, Any]:
    return {
        "inputs": [
            {"name": name, "datatype": kind, "shape": shape, "parameters": {"binary_data_size": size}}
            for name, kind, shape, size in tensors
        ]
    }


def texts(*values: str) -> bytes:
    return b"".join(struct.pack("<I", len(v.encode())) + v.encode() for v in values)


@pytest.mark.parametrize(("datatype", "kind"), NUMBERS, ids=[name for name, _ in NUMBERS])
def test_numbers_are_read_and_written_as_numpy_lays_them_out(datatype: str, kind: Any) -> None:
    values = np.array([[0, 1, 1], [1, 0, 1]], dtype=kind)
    read = with_binary(document(("x", datatype, [2, 3], values.nbytes)), values.tobytes())["inputs"][0]["data"]
    assert read == values.ravel().tolist()
    output = {"name": "x", "datatype": datatype, "shape": [2, 3], "data": read}
    wanted = BinaryOutputs({"outputs": [{"name": "x", "parameters": {"binary_data": True}}]})
    told, rest = wanted.split([output])
    assert rest == values.tobytes() and told[0]["parameters"] == {"binary_data_size": values.nbytes}
    assert "data" not in told[0] and told[0]["shape"] == [2, 3]


def test_bfloat16_is_the_upper_half_of_a_float() -> None:
    raw = b"".join(struct.pack("<f", v)[2:] for v in (1.0, -0.5, 3.0))
    assert with_binary(document(("x", "BF16", [3], 6)), raw)["inputs"][0]["data"] == [1.0, -0.5, 3.0]
    output = {"name": "x", "datatype": "BF16", "shape": [3], "data": [1.0, -0.5, 3.0]}
    assert BinaryOutputs({"parameters": {"binary_data_output": True}}).split([output])[1] == raw


def test_texts_have_their_length_before_them_and_tensors_follow_each_other() -> None:
    words = texts("héllo", "")
    asked = with_binary(
        document(("a", "BYTES", [2], len(words)), ("n", "INT32", [1], 4)), words + struct.pack("<i", -7)
    )
    assert [t["data"] for t in asked["inputs"]] == [["héllo", ""], [-7]]
    output = {"name": "a", "datatype": "BYTES", "shape": [2], "data": ["héllo", ""]}
    assert BinaryOutputs({"parameters": {"binary_data_output": True}}).split([output])[1] == words


@pytest.mark.parametrize(
    ("tensors", "rest", "why"),
    [
        ([("x", "INT32", [2], 8)], b"\0" * 4, "has binary_data_size 8, 4 bytes are left"),
        ([("x", "INT32", [1], 4)], b"\0" * 9, "9 bytes follow the JSON"),
        ([("x", "INT32", [3], 8)], b"\0" * 8, r"8 bytes are no INT32 of shape \[3\]"),
        ([("x", "BYTES", [1], 6)], texts("abc")[:6], "not 1 texts"),
        ([("x", "BYTES", [2], 7)], texts("abc"), "not 2 texts"),
        ([("x", "BYTES", [1], 6)], struct.pack("<I", 2) + b"\xff\xfe", "no UTF-8 text"),
        ([("x", "COMPLEX", [1], 8)], b"\0" * 8, "'COMPLEX' has no binary form"),
        ([("x", "INT8", [-1], 1)], b"\0", "the shape must be"),
        ([("x", "INT8", [1], -1)], b"\0", "must be a number of bytes"),
        ([("x", "INT8", [10**30], 1)], b"\0", "are no INT8"),
    ],
)
def test_bytes_that_do_not_fit_are_refused_in_words(tensors: Any, rest: bytes, why: str) -> None:
    with pytest.raises(BadRequest, match=why):
        with_binary(document(*tensors), rest)


def test_only_the_outputs_that_were_asked_for_are_sent_in_that_order() -> None:
    outputs = [{"name": n, "datatype": "INT64", "shape": [1], "data": [1]} for n in ("a", "b", "c")]
    assert [o["name"] for o in BinaryOutputs({"outputs": [{"name": "c"}, {"name": "a"}]}).chosen(outputs)] == ["c", "a"]
    assert BinaryOutputs({}).chosen(outputs) == outputs and BinaryOutputs({"outputs": []}).chosen(outputs) == outputs
    with pytest.raises(BadRequest, match="output 'nope' is not there; the app's are: a, b, c"):
        BinaryOutputs({"outputs": [{"name": "nope"}]}).chosen(outputs)
    with pytest.raises(BadRequest, match="output 'nope' is not there; the app's are: a"):
        BinaryOutputs({"outputs": [{"name": "nope"}]}).check(["a"])
    for wrong in ("a", [1], [{"nme": "a"}], {"name": "a"}):
        with pytest.raises(BadRequest, match="`outputs` must be"):
            BinaryOutputs({"outputs": wrong})


def test_a_reply_says_how_much_of_it_is_json() -> None:
    body, json_bytes = tensors.binary_body({"outputs": []}, b"\1\2")
    assert json.loads(body[:json_bytes]) == {"outputs": []} and body[json_bytes:] == b"\1\2"
