"""input_schema.py as it is written in the wild: what is accepted, and what the platform's errors say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from puna.config import schema as before
from puna.errors import SchemaError
from puna.worker.app.schema import DEFAULT_BATCH_WINDOW_MS, FLAGS, KINDS, SchemaFault, read


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


READERS = [
    # Each as `puna deploy` reads it before the app runs, and as the worker does when it has: one answer, or none.
    ("BATCH_SIZE = 4", (4, 500, False, False)),
    ("BATCH_SIZE = 1", (1, 500, False, False)),
    ("BATCH_SIZE = None", (None, 500, False, False)),
    ("BATCH_SIZE = 0", (None, 500, False, False)),
    ("BATCH_SIZE = -1", None),
    ("BATCH_SIZE = True", None),
    ("BATCH_SIZE = 2.5", None),
    ("BATCH_SIZE = '4'", None),
    ("BATCH_WINDOW = 0", (None, 0, False, False)),
    ("BATCH_WINDOW = 0.0", (None, 0, False, False)),
    ("BATCH_WINDOW = 0.5", (None, 0.5, False, False)),
    ("BATCH_WINDOW = None", (None, 500, False, False)),
    ("BATCH_WINDOW = -1", None),
    ("BATCH_WINDOW = False", None),
    ("BATCH_WINDOW = 1e999", None),
    ("BATCH_WINDOW = '50'", None),
    ("IS_STREAMING_OUTPUT = 1", (None, 500, True, False)),
    ("IS_STREAMING_OUTPUT = None", (None, 500, False, False)),
    ("OPENAI_CLIENT_COMPATIBLITY = True", (None, 500, False, True)),
    ("OPENAI_CLIENT_COMPATIBILITY = True", (None, 500, False, True)),
    ("OPENAI_CLIENT_COMPATIBLITY = True; OPENAI_CLIENT_COMPATIBILITY = False", (None, 500, False, True)),
    ("OPENAI_CLIENT_COMPATIBILITY = True; OPENAI_CLIENT_COMPATIBLITY = False", (None, 500, False, True)),
    ("OPENAI_CLIENT_COMPATIBILITY = False", (None, 500, False, False)),
    ("BATCH_SIZE = 8; BATCH_SIZE = 2", (2, 500, False, False)),
]


@pytest.mark.parametrize(("flags", "meaning"), READERS)
def test_flags_mean_the_same_before_the_app_runs_and_after(
    tmp_path: Path, flags: str, meaning: tuple[Any, ...] | None
) -> None:
    write(tmp_path, f"INPUT_SCHEMA = {{}}\n{flags}\n")
    if meaning is None:
        with pytest.raises(SchemaFault) as ran:
            read(str(tmp_path))
        with pytest.raises(SchemaError) as looked:
            before.read_literal(tmp_path / "input_schema.py")
        assert str(ran.value).startswith(looked.value.message)
        return
    written = before.read_literal(tmp_path / "input_schema.py")
    assert written is not None and written.flags == before.Flags(*meaning)
    assert before.from_json(read(str(tmp_path)).as_json()) == written


@pytest.mark.parametrize(
    ("entry", "is_good"),
    [
        ({"datatype": "INT8", "shape": (2, -1), "example": (1, 2)}, True),
        ({"datatype": "int8", "shape": [1], "example": 7}, True),
        ({"datatype": "STRING", "shape": [1], "example": ["a"], "required": False}, True),
        ({"datatype": "INT8", "shape": [0], "example": []}, False),
        ({"datatype": "INT8", "shape": [True], "example": [1]}, False),
        ({"datatype": "INT8", "shape": [-2], "example": [1]}, False),
        ({"datatype": "INT8", "shape": (), "example": [1]}, False),
        ({"datatype": "INT9", "shape": [1], "example": [1]}, False),
        ("STRING", False),
    ],
)
def test_inputs_mean_the_same_before_the_app_runs_and_after(tmp_path: Path, entry: Any, is_good: bool) -> None:
    write(tmp_path, f"INPUT_SCHEMA = {{'x': {entry!r}}}\n")
    if not is_good:
        with pytest.raises(SchemaFault):
            read(str(tmp_path))
        with pytest.raises(SchemaError):
            before.read_literal(tmp_path / "input_schema.py")
        return
    written = before.read_literal(tmp_path / "input_schema.py")
    assert before.from_json(read(str(tmp_path)).as_json()) == written


def test_both_readers_know_the_same_words() -> None:
    assert before.DECLARED == {"INPUT_SCHEMA", *FLAGS} and set(before.DATATYPES) == set(KINDS)
    assert before.DEFAULT_BATCH_WINDOW_MS == DEFAULT_BATCH_WINDOW_MS
