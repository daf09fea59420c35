"""input_schema.py as it is written in the wild: what is accepted, and what the platform's errors say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from puna.worker.schema import SchemaFault, read


def write(folder: Path, text: str, name: str = "input_schema.py") -> Path:
    (folder / name).write_text(text)
    return folder


def test_the_tutorials_schema_reads(tmp_path: Path) -> None:
    source = """INPUT_SCHEMA = {
    "prompt": {
        'datatype': 'STRING',
        'required': True,
        'shape': [1],
        'example': ["What is AI?"]
    }
}
"""
    schema = read(str(write(tmp_path, source))).as_json()
    prompt = {"name": "prompt", "datatype": "STRING", "shape": [1], "required": True, "example": ["What is AI?"]}
    flags = {"batch_size": 0, "batch_window_ms": 500.0, "streaming": False, "openai": False}
    assert schema == {"inputs": [prompt], "flags": flags, "outputs": None}


def test_the_file_is_run_as_python(tmp_path: Path) -> None:
    source = (
        "text = '''two\nlines'''\nBATCH_SIZE = 4\nBATCH_WINDOW = 50\nIS_STREAMING_OUTPUT = True\n"
        "OPENAI_CLIENT_COMPATIBLITY = True\n"
        "INPUT_SCHEMA = {'a': {'datatype': 'INT8', 'shape': [1], 'example': [768]},\n"
        "  'a': {'datatype': 'string', 'shape': [-1], 'data': [text]},\n"
        "  'b': {'datatype': 'FP32', 'required': False}}\n"
    )
    schema = read(str(write(tmp_path, source)))
    assert [(i.name, i.datatype, i.required, i.shape, i.example) for i in schema.inputs] == [
        ("a", "STRING", True, [-1], ["two\nlines"]),
        ("b", "FP32", False, [1], None),
    ]
    assert schema.as_json()["flags"] == {
        "batch_size": 4,
        "batch_window_ms": 50.0,
        "streaming": True,
        "openai": True,
    }


def test_without_required_an_input_must_be_sent_but_nothing_else_is_insisted_on(tmp_path: Path) -> None:
    source = """INPUT_SCHEMA = {"a": {"datatype": "FP32"}, "b": {"datatype": "STRING", "shape": [2], "required": False},
        "c": {"datatype": "INT8", "required": False, "example": [1, 2]}, "d": {"datatype": "BOOL", "shape": [-1, 2]}}"""
    a, b, c, d = read(str(write(tmp_path, source))).inputs
    assert (a.required, a.shape, a.example, a.sample()) == (True, [1], None, [1])
    assert (b.required, b.shape, b.sample()) == (False, [2], ["A sample line"] * 2)
    assert (c.shape, c.sample(), d.sample()) == ([-1], [1, 2], [True, True])


@pytest.mark.parametrize(
    ("entry", "error"),
    [
        ({"shape": [1], "example": [1]}, "Data type not specified for input --> X"),
        ({"datatype": "INT", "shape": [1], "example": [1]}, "Data type INT not supported for input --> X"),
        ({"datatype": "INT8", "required": True, "example": [1]}, "shape not specified for input --> X"),
        (
            {"datatype": "INT8", "shape": [], "example": [1]},
            "shape not specified as a python list for input --> X",
        ),
        ({"datatype": "INT8", "shape": 1, "example": [1]}, "shape not specified as a python list for input --> X"),
        ({"datatype": "INT8", "required": True, "shape": [1]}, "example not specified for input --> X"),
    ],
)
def test_a_wrong_entry_is_told_in_the_platforms_words(tmp_path: Path, entry: Any, error: str) -> None:
    with pytest.raises(SchemaFault) as caught:
        read(str(write(tmp_path, f"INPUT_SCHEMA = {{'X': {entry!r}}}")))
    assert str(caught.value).startswith(error)


def test_input_json_and_output_json_are_the_older_way(tmp_path: Path) -> None:
    write(tmp_path, '{"inputs": [{"name": "x", "shape": [2], "datatype": "FP32", "data": [1, 2]}]}', "input.json")
    write(tmp_path, '{"outputs": [{"name": "y", "shape": [-1], "datatype": "FP32", "data": []}]}', "output.json")
    schema = read(str(tmp_path)).as_json()
    assert schema["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [2], "required": True, "example": [1, 2]}]
    assert schema["outputs"] == [{"name": "y", "datatype": "FP32", "shape": [-1]}]


def test_input_schema_wins_over_input_json(tmp_path: Path) -> None:
    write(tmp_path, '{"inputs": []}', "input.json")
    write(tmp_path, "INPUT_SCHEMA = {'a': {'datatype': 'BOOL', 'shape': [1], 'example': [True]}}")
    assert [i.name for i in read(str(tmp_path)).inputs] == ["a"]


def test_no_file_means_no_inputs(tmp_path: Path) -> None:
    assert read(str(tmp_path)).inputs == []
