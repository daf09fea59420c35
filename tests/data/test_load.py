"""Every format is read, and every error names the file and the row."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from data.made import chat, write_jsonl
from puna.config.recipe import DataRecipe
from puna.data.load import RowSource, open_source, read_rows
from puna.errors import DataError

ROWS: list[dict[str, Any]] = [{"messages": chat(f"question {i}", f"answer {i}")} for i in range(3)]


def source_of(path: Path | str) -> RowSource:
    return open_source(DataRecipe(dataset=str(path)))


def messages(path: Path) -> list[list[Any]]:
    source = source_of(path)
    rows, skipped = read_rows(source, range(len(source.records)), need_assistant=True, skip_bad=False)
    assert skipped == 0
    return [list(row.messages) for row in rows]


EXPECTED = [row["messages"] for row in ROWS]


def test_json_lines_are_read_past_blank_lines_and_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("\ufeff" + "\r\n\n".join(json.dumps(row) for row in ROWS))
    assert messages(path) == EXPECTED


def test_a_json_list_is_read_and_so_are_json_lines_by_that_name(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("\ufeff" + json.dumps(ROWS, indent=1))
    assert messages(path) == EXPECTED
    assert messages(write_jsonl(tmp_path / "b.json", ROWS)) == EXPECTED


def test_parquet_is_read_with_its_other_columns_left_alone(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.Table.from_pylist([{**row, "prompt_id": "x"} for row in ROWS]), path)
    assert messages(path) == EXPECTED
    assert source_of(path).records.read(0) == ROWS[0]


def test_csv_is_read_whether_turns_are_cells_or_json(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["prompt", "completion"])
        writer.writerows([turn["content"] for turn in row["messages"]] for row in ROWS)
    assert messages(path) == EXPECTED
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["messages"], *([json.dumps(row["messages"])] for row in ROWS)])
    assert messages(path) == EXPECTED


def test_the_demo_needs_no_file_and_no_network() -> None:
    source = source_of("demo")
    assert len(source.records) > 100 and source.column == "messages"
    assert read_rows(source, [0], need_assistant=True, skip_bad=False)[0][0].messages


def test_a_broken_json_line_is_named_with_its_line_number(tmp_path: Path) -> None:
    source = source_of(write_jsonl(tmp_path / "chats.jsonl", [ROWS[0], "", '{"messages": [', ROWS[1]]))
    with pytest.raises(DataError, match=r"^chats.jsonl line 3: is not JSON") as caught:
        read_rows(source, [0, 1, 2], need_assistant=True, skip_bad=False)
    assert "skip_bad_rows" in caught.value.hint


def test_a_line_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    path.write_bytes(json.dumps(ROWS[0]).encode() + b'\n{"messages": "\xff"}\n')
    with pytest.raises(DataError, match="chats.jsonl line 2: is not UTF-8"):
        read_rows(source_of(path), [1], need_assistant=True, skip_bad=False)


def test_rows_of_other_formats_are_counted_from_one(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps([*ROWS, {"messages": []}]))
    with pytest.raises(DataError, match="^a.json row 4: `messages` is empty"):
        read_rows(source_of(path), [0, 3], need_assistant=True, skip_bad=False)


def test_bad_rows_are_skipped_and_counted_when_asked(tmp_path: Path) -> None:
    source = source_of(write_jsonl(tmp_path / "a.jsonl", [ROWS[0], "{", {"messages": []}, "[1]", ROWS[1]]))
    rows, skipped = read_rows(source, range(5), need_assistant=True, skip_bad=True)
    assert skipped == 3 and [row.where for row in rows] == ["a.jsonl line 1", "a.jsonl line 5"]


def test_a_file_of_bad_rows_only_is_an_error_even_when_they_are_skipped(tmp_path: Path) -> None:
    source = source_of(write_jsonl(tmp_path / "a.jsonl", [{"messages": []}]))
    with pytest.raises(DataError, match="every row is malformed"):
        read_rows(source, [0], need_assistant=True, skip_bad=True)


@pytest.mark.parametrize(
    ("row", "message", "hint"),
    [
        ({"message": []}, "it has: message", "did you mean `messages`?"),
        ({"q": 1, "a": 2}, "it has: q, a", "give rows `messages`"),
        ("5", "no row of it is an object", "give rows `messages`"),
    ],
)
def test_a_file_without_a_known_column_is_refused_with_the_nearest_name(
    tmp_path: Path, row: Any, message: str, hint: str
) -> None:
    with pytest.raises(DataError, match="a.jsonl has no column to learn from") as caught:
        _ = source_of(write_jsonl(tmp_path / "a.jsonl", [row])).column
    assert message in caught.value.message and hint in caught.value.hint


def test_the_column_is_found_behind_a_broken_first_line(tmp_path: Path) -> None:
    assert source_of(write_jsonl(tmp_path / "a.jsonl", ["{", ROWS[0]])).column == "messages"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", "", "holds no rows"),
        ("a.json", "[{]", "a.json is not JSON"),
        ("a.csv", 'text\n"x', "is not CSV"),
        ("a.parquet", "nonsense", "a.parquet is not Parquet"),
        ("a.xlsx", "x", "unknown format"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        _ = source_of(tmp_path / name).records


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere.jsonl cannot be read: No such file"):
        source_of(tmp_path / "nowhere.jsonl")


def test_the_fingerprint_of_a_file_is_its_content(tmp_path: Path) -> None:
    one, other = write_jsonl(tmp_path / "a.jsonl", ROWS), write_jsonl(tmp_path / "b.jsonl", ROWS)
    assert source_of(one).fingerprint == source_of(other).fingerprint
    assert source_of(one).fingerprint != source_of(write_jsonl(other, ROWS[:1])).fingerprint


def test_a_pinned_hub_dataset_is_not_fetched_to_know_its_fingerprint() -> None:
    data = DataRecipe(dataset="owner/name", split="train", revision="a" * 40)
    assert open_source(data).fingerprint == f"hub:owner/name@{'a' * 40}/train"
