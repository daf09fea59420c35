"""Sources of rows: the Hub, a local JSON, JSON Lines, Parquet or CSV file, or the demo's chats."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from puna.artifacts import file_digest
from puna.config.recipe import DataRecipe
from puna.data.conversation import BadRowError, Column, Row, column_of, read_row
from puna.errors import DataError, first_line, nearest

COLUMNS = ("messages", "conversations", "prompt", "completion", "text")
CELL_CHARACTERS = 2**27  # csv refuses cells over 128 KiB by default; a conversation may be longer


@dataclass(frozen=True)
class Records:
    """Rows as they stand in the source, read one at a time: sampling 10,000 of 200,000 parses only those."""

    values: Any
    """A sequence of rows, or a dataset of the Hub."""

    def __len__(self) -> int:
        return len(self.values)

    def place(self, index: int) -> str:
        """The row's place for people: `line 17` of the file, or `row 17` counted from 1."""
        return f"row {index + 1}"

    def read(self, index: int) -> object:
        """The row's value; raises BadRowError when it cannot be parsed."""
        return self.values[index]


@dataclass(frozen=True)
class RowSource:
    """A dataset that can be opened; its fingerprint is known without reading the rows where that is possible."""

    name: str
    fingerprint: str
    opener: Callable[[], Records]

    @cached_property
    def records(self) -> Records:
        """The rows, opened on first use."""
        records = self.opener()
        if not len(records):
            raise DataError(f"{self.name} holds no rows")
        return records

    @cached_property
    def column(self) -> Column:
        """The column to learn from.

        Raises:
            DataError: none of the first readable rows has a column that Puna knows.
        """
        found: list[str] = []
        for index in range(min(len(self.records), 100)):
            try:
                value = self.records.read(index)
            except BadRowError:
                continue  # reported with its number when it is its turn, or skipped
            if isinstance(value, dict):
                if column := column_of(value):
                    return column
                found = found or [str(key) for key in value]
        near = next((hint for name in found if (hint := nearest(name, COLUMNS))), "")
        known = "give rows `messages` ([{role, content}]), `prompt` and `completion`, or `text`"
        columns = f"; it has: {', '.join(found)}" if found else ": no row of it is an object"
        raise DataError(f"{self.name} has no column to learn from{columns}", near or known)


def open_source(data: DataRecipe) -> RowSource:
    """The source that the recipe names; files and pinned hub datasets are not read yet.

    Raises:
        DataError: a missing file, an unknown format, a hub that cannot be reached.
    """
    if data.dataset == "demo":
        from puna.demo import CHATS

        return _open_file(CHATS)
    path = Path(data.dataset).expanduser()
    is_path = path.suffix in READERS or path.exists() or data.dataset.startswith(("/", "./", "../", "~"))
    # `datasets` reads folders in the Hub's layout too.
    return _open_file(path) if is_path and not path.is_dir() else _open_hub(data)


def read_rows(
    source: RowSource, indices: Sequence[int], *, need_assistant: bool, skip_bad: bool
) -> tuple[list[Row], int]:
    """The rows at `indices`, and how many bad ones were skipped.

    Raises:
        DataError: a row is malformed and bad rows are not to be skipped, or none is left.
    """
    rows: list[Row] = []
    for index in indices:
        where = f"{source.name} {source.records.place(index)}"
        try:
            rows.append(read_row(source.records.read(index), source.column, where, need_assistant=need_assistant))
        except BadRowError as problem:
            if not skip_bad:
                raise bad_row(where, str(problem)) from None
    if not rows:
        raise DataError(f"{source.name}: every row is malformed", "read one: set `data.skip_bad_rows: false`")
    return rows, len(indices) - len(rows)


def bad_row(where: str, problem: str) -> DataError:
    """The error for one malformed row."""
    return DataError(f"{where}: {problem}", "mend the row, or set `data.skip_bad_rows: true` to leave such rows out")


# ---------------------------------------------------------------------------------------------- files


def _open_file(path: Path) -> RowSource:
    if path.suffix not in READERS:
        raise DataError(f"{path} is of an unknown format", f"Puna reads {', '.join(READERS)} and hub ids")
    try:
        fingerprint = f"file:{file_digest(path)}"
    except OSError as error:
        raise DataError(f"dataset {path} cannot be read: {error.strerror}", "check `data.dataset`") from None
    reader = READERS[path.suffix]
    return RowSource(path.name, fingerprint, lambda: reader(path))


class _Table(Records):
    """Known columns of a Parquet file, kept in Arrow's memory and made into Python objects row by row."""

    def read(self, index: int) -> object:
        return self.values.slice(index, 1).to_pylist()[0]


class _Lines(Records):
    """JSON Lines: (number, line) of each that is not blank, parsed when asked for."""

    def place(self, index: int) -> str:
        return f"line {self.values[index][0]}"

    def read(self, index: int) -> object:
        try:
            return json.loads(self.values[index][1])
        except UnicodeDecodeError as problem:
            raise BadRowError(f"is not UTF-8: {problem}") from None
        except ValueError as problem:
            raise BadRowError(f"is not JSON: {problem}") from None


def _json_lines(path: Path) -> Records:
    lines = enumerate(path.read_bytes().split(b"\n"), 1)
    return _Lines([(number, line) for number, line in lines if line.strip()])


def _json(path: Path) -> Records:
    content = path.read_bytes().removeprefix(b"\xef\xbb\xbf")  # Windows editors put a byte-order mark there
    if not content.lstrip().startswith(b"["):
        return _json_lines(path)  # many files named .json hold JSON Lines
    try:
        return Records(json.loads(content))
    except ValueError as problem:
        hint = "mend the file, or write one row a line (.jsonl)"
        raise DataError(f"{path.name} is not JSON: {problem}", hint) from None


def _csv(path: Path) -> Records:
    csv.field_size_limit(CELL_CHARACTERS)
    with path.open(encoding="utf-8-sig", newline="") as file:
        try:
            return Records([_cells(row) for row in csv.DictReader(file, strict=True)])
        except (csv.Error, UnicodeDecodeError) as problem:
            hint = "save it as UTF-8 with a header row"
            raise DataError(f"{path.name} is not CSV in UTF-8: {problem}", hint) from None


def _cells(row: dict[Any, Any]) -> dict[str, Any]:
    # A line with too many cells puts the rest under None, one with too few leaves None: the checks then name them.
    return {str(key): value for key, value in row.items() if key is not None}


def _parquet(path: Path) -> Records:
    import pyarrow  # here and not above: the CLI imports this module's room for `--help`
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(path)
        names = [name for name in file.schema_arrow.names if name in COLUMNS]
        return _Table(file.read(columns=names or None))
    except (pyarrow.ArrowInvalid, OSError) as problem:
        raise DataError(f"{path.name} is not Parquet: {problem}") from None


READERS: dict[str, Callable[[Path], Records]] = {
    ".jsonl": _json_lines,
    ".json": _json,
    ".parquet": _parquet,
    ".csv": _csv,
}


# ------------------------------------------------------------------------------ the Hub, and folders like it


def _open_hub(data: DataRecipe) -> RowSource:
    name = f"{data.dataset} ({data.split})"
    # A commit never changes, so its name is fingerprint enough; a branch has to be looked up.
    if data.revision and len(data.revision) == 40:
        return RowSource(name, f"hub:{data.dataset}@{data.revision}/{data.split}", lambda: Records(_download(data)))
    dataset = _download(data)
    return RowSource(name, f"hub:{data.dataset}/{data.split}#{dataset._fingerprint}", lambda: Records(dataset))


def _download(data: DataRecipe) -> Any:
    # Imported here: three seconds, and only hub datasets need it.
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError

    try:
        return load_dataset(data.dataset, split=data.split, revision=data.revision)
    except DatasetNotFoundError as problem:
        hint = "check the spelling; a gated dataset needs `hf auth login`; a local file needs its suffix (.jsonl...)"
        raise DataError(f"the Hub has no {data.dataset}, or not for you: {first_line(problem)}", hint) from None
    except ConnectionError as problem:
        hint = (
            "check the network, or fetch it once where there is one (`hf download --repo-type dataset "
            f"{data.dataset}`) and set `data.dataset` to a file of it; `dataset: demo` needs no network"
        )
        raise DataError(f"the Hub cannot be reached for dataset {data.dataset}: {first_line(problem)}", hint) from None
    except ValueError as problem:  # an unknown split or configuration
        raise DataError(f"dataset {data.dataset}: {first_line(problem)}", "check `data.split`") from None
