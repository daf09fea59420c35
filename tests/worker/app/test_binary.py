"""KServe's binary tensors, read and written as Triton's client does, and by hand where they are wrong."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
import pytest

from puna.worker.app import binary
from puna.worker.app.binary import BinaryOutputs, filled
from puna.worker.app.tensors import BadRequest

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
    read = filled(document(("x", datatype, [2, 3], values.nbytes)), values.tobytes())["inputs"][0]["data"]
    assert read == values.ravel().tolist()
    output = {"name": "x", "datatype": datatype, "shape": [2, 3], "data": read}
    wanted = BinaryOutputs({"outputs": [{"name": "x", "parameters": {"binary_data": True}}]})
    told, rest = wanted.split([output])
    assert rest == values.tobytes() and told[0]["parameters"] == {"binary_data_size": values.nbytes}
    assert "data" not in told[0] and told[0]["shape"] == [2, 3]


def test_bfloat16_is_the_upper_half_of_a_float() -> None:
    raw = b"".join(struct.pack("<f", v)[2:] for v in (1.0, -0.5, 3.0))
    assert filled(document(("x", "BF16", [3], 6)), raw)["inputs"][0]["data"] == [1.0, -0.5, 3.0]
    output = {"name": "x", "datatype": "BF16", "shape": [3], "data": [1.0, -0.5, 3.0]}
    assert BinaryOutputs({"parameters": {"binary_data_output": True}}).split([output])[1] == raw


def test_texts_have_their_length_before_them_and_tensors_follow_each_other() -> None:
    words = texts("héllo", "")
    asked = filled(document(("a", "BYTES", [2], len(words)), ("n", "INT32", [1], 4)), words + struct.pack("<i", -7))
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
        filled(document(*tensors), rest)


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
    body, json_bytes = binary.written({"outputs": []}, b"\1\2")
    assert json.loads(body[:json_bytes]) == {"outputs": []} and body[json_bytes:] == b"\1\2"
