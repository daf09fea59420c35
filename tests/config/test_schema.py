"""input_schema.py read without running it, the platform's error texts, and the bodies made from it."""

from pathlib import Path
from typing import Any

import pytest

from puna.config import schema
from puna.config.schema import Flags, Input, Schema
from puna.errors import SchemaError


def read(folder: Path, text: str) -> Schema | None:
    (folder / "input_schema.py").write_text(text)
    return schema.read_literal(folder / "input_schema.py")


def of(**inputs: Any) -> Schema:
    return schema.from_literal({"INPUT_SCHEMA": inputs})


def test_the_tutorials_schema_makes_the_tutorials_request(tutorial: Path) -> None:
    found = schema.read_literal(tutorial / "input_schema.py")
    assert found is not None
    assert found.inputs == (Input("prompt", "STRING", (1,), True, ("What is AI?",)),)
    body = {"inputs": [{"name": "prompt", "shape": [1], "datatype": "BYTES", "data": ["What is AI?"]}]}
    assert found.example_request() == body
    assert found.request_from_pairs({"prompt": "What is AI?"}) == body


def test_nothing_in_the_file_is_run(tmp_path: Path) -> None:
    witness = tmp_path / "ran"
    text = f"open({str(witness)!r}, 'w')\nINPUT_SCHEMA = {{}}\n"
    assert read(tmp_path, text) == Schema(())
    assert not witness.exists()


@pytest.mark.parametrize(
    "text",
    [
        "INPUT_SCHEMA = make()\n",
        "BASE = {}\nINPUT_SCHEMA = {**BASE}\n",
        "import x\n",
        "INPUT_SCHEMA = {}\nBATCH_SIZE = n()\n",
        "INPUT_SCHEMA = {}\nif True:\n    BATCH_SIZE = 4\n",
        "INPUT_SCHEMA = {}\nBATCH_SIZE = 4\nBATCH_SIZE += 1\n",
        "INPUT_SCHEMA = {}\nINPUT_SCHEMA['x'] = {}\n",
        "INPUT_SCHEMA = {}\nfrom shared import *\n",
        "INPUT_SCHEMA = {}\nfrom shared import BATCH_SIZE\n",
    ],
)
def test_a_schema_that_is_computed_is_left_to_the_worker(tmp_path: Path, text: str) -> None:
    assert read(tmp_path, text) is None


def test_a_missing_file_says_nothing(tmp_path: Path) -> None:
    assert schema.read_literal(tmp_path / "input_schema.py") is None


def test_a_syntax_error_names_its_line(tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match="line 2"):
        read(tmp_path, "A = 1\nINPUT_SCHEMA = {\n")


def test_flags_are_read(tmp_path: Path) -> None:
    text = "INPUT_SCHEMA = {}\nBATCH_SIZE = 4\nBATCH_WINDOW = 50\nIS_STREAMING_OUTPUT = True\n"
    text += "OPENAI_CLIENT_COMPATIBLITY = True\n"
    found = read(tmp_path, text)
    assert found is not None and found.flags == Flags(4, 50, True, True)
    with pytest.raises(SchemaError, match="BATCH_SIZE"):
        read(tmp_path, "INPUT_SCHEMA = {}\nBATCH_SIZE = -1\n")


STRING = {"datatype": "STRING", "required": True, "shape": [1], "example": ["x"]}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"shape": None}, "shape not specified for input --> x"),
        ({"shape": 1}, "shape not specified as a python list for input --> x"),
        ({"shape": []}, "shape not specified as a python list for input --> x"),
        ({"example": None}, "example not specified for input --> x"),
        ({"datatype": None}, "Data type not specified for input --> x"),
        ({"datatype": "INT"}, "Data type INT not supported for input --> x"),
        ({"datatype": "FLOAT"}, "Data type FLOAT not supported for input --> x"),
        ({"shape": [0]}, "shape of input --> x"),
        ({"example": ["a", "b"]}, "input --> x has 2 elements"),
        ({"datatype": "FP32"}, "example 'x' is no FP32 for input --> x"),
    ],
)
def test_a_wrong_input_is_named_in_the_platforms_words(change: dict[str, Any], text: str) -> None:
    values = {k: v for k, v in (STRING | change).items() if v is not None}
    with pytest.raises(SchemaError, match=text):
        of(x=values)


@pytest.mark.parametrize(
    "values",
    [
        {"datatype": "INT8", "required": True, "shape": [1], "example": [768]},
        {"datatype": "STRING", "required": True, "shape": [1], "data": ["x"]},
        {"datatype": "STRING", "shape": [1], "example": ["x"]},
        {"datatype": "STRING", "required": False},
        {"datatype": "FP32", "required": True, "shape": [1], "example": [3]},
        {"datatype": "STRING", "required": True, "shape": [-1], "example": ["a", "b", "c"]},
        {"datatype": "STRING", "required": True, "shape": [1], "example": ["深" * 10_000]},
        {"datatype": "STRING", "required": True, "shape": [1], "example": "no list"},
        {"datatype": "FP32", "required": True, "shape": [2, -1], "example": [[1, 2], [3, 4]]},
    ],
)
def test_quirks_of_published_apps_are_accepted(values: dict[str, Any]) -> None:
    assert of(x=values).inputs[0].name == "x"


def test_the_last_of_two_equal_keys_wins(tmp_path: Path) -> None:
    found = read(tmp_path, f"INPUT_SCHEMA = {{'x': {STRING | {'example': ['old']}}, 'x': {STRING}}}\n")
    assert found is not None and found.inputs[0].example == ("x",)


def test_examples_take_their_shape_from_their_length() -> None:
    many = of(x={"datatype": "FP32", "required": True, "shape": [2, -1], "example": [[1, 2, 3], [4, 5, 6]]})
    assert many.example_request()["inputs"][0] == {
        "name": "x", "shape": [2, 3], "datatype": "FP32", "data": [1, 2, 3, 4, 5, 6],
    }  # fmt: skip
    batched = schema.from_literal({"INPUT_SCHEMA": {"x": STRING}, "BATCH_SIZE": 4})
    assert batched.example_request()["inputs"][0]["shape"] == [1, 1]


def test_words_from_a_command_line_become_values() -> None:
    found = of(
        n={"datatype": "INT32", "required": False, "shape": [1]},
        t={"datatype": "FP32", "required": False, "shape": [1]},
        b={"datatype": "BOOL", "required": False, "shape": [1]},
        many={"datatype": "INT64", "required": False, "shape": [-1]},
        s={"datatype": "STRING", "required": False, "shape": [1]},
    )
    pairs: dict[str, object] = {"n": "3", "t": "0.5", "b": "true", "many": "[1, 2]", "s": "[a, b], c=d"}
    body = {i["name"]: (i["shape"], i["datatype"], i["data"]) for i in found.request_from_pairs(pairs)["inputs"]}
    assert body == {
        "n": ([1], "INT32", [3]),
        "t": ([1], "FP32", [0.5]),
        "b": ([1], "BOOL", [True]),
        "many": ([2], "INT64", [1, 2]),
        "s": ([1], "BYTES", ["[a, b], c=d"]),
    }
    assert found.request_from_pairs({"many": "1,2,3"})["inputs"][0]["data"] == [1, 2, 3]
    assert found.request_from_pairs({"many": [4, 5], "n": 7})["inputs"][0]["data"] == [7]


@pytest.mark.parametrize(
    ("pairs", "message", "hint"),
    [
        ({"promt": "x"}, "unknown input `promt`", "`prompt`"),
        ({}, "input `prompt` is missing", "prompt="),
        ({"prompt": "x", "n": "many"}, "`n`", ""),
        ({"prompt": "x", "n": "1.5"}, "`n`", ""),
        ({"prompt": "x", "b": "perhaps"}, "`b`", "b=true"),
        ({"prompt": "x", "three": "[1"}, "`three`", ""),
        ({"prompt": "x", "three": "1,2"}, "three", ""),
    ],
)
def test_a_request_that_does_not_fit_says_what_is_wrong(pairs: dict[str, object], message: str, hint: str) -> None:
    found = of(
        prompt=STRING,
        n={"datatype": "INT32", "required": False, "shape": [1]},
        b={"datatype": "BOOL", "required": False, "shape": [1]},
        three={"datatype": "INT32", "required": False, "shape": [3]},
    )
    with pytest.raises(SchemaError, match=message) as caught:
        found.request_from_pairs(pairs)
    assert hint in caught.value.hint


def test_the_workers_description_is_read() -> None:
    found = schema.from_json(
        {
            "inputs": [{"name": "x", "datatype": "STRING", "shape": [1], "required": True, "example": ["hi"]}],
            "flags": {"batch_size": 0, "batch_window_ms": 500.0, "streaming": False, "openai": False},
            "outputs": [{"name": "y", "datatype": "BYTES", "shape": [1]}],
        }
    )
    assert found.flags == Flags() and found.inputs[0].wire_type == "BYTES"
    assert found.outputs is not None and found.outputs[0].name == "y"
    assert found.describe() == "x: STRING [1]"
    with pytest.raises(SchemaError):
        schema.from_json({"inputs": [{"shape": [1]}]})
