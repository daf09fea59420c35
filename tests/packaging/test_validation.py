"""Reports of dry runs, read into a result or into an error that a person can act on."""

import json
from pathlib import Path
from typing import Any

import pytest

from puna.errors import AppError
from puna.packaging import validation

GOOD = {
    "ok": True,
    "phase": "finalize",
    "error": "",
    "line": "",
    "traceback": "",
    "unfinished": False,
    "schema": {
        "inputs": [{"name": "prompt", "datatype": "STRING", "shape": [1], "required": True, "example": ["hi"]}],
        "flags": {"batch_size": 0, "batch_window_ms": 500, "streaming": False, "openai": False},
        "outputs": [{"name": "generated_text", "datatype": "BYTES", "shape": [1]}],
    },
    "outputs": [{"name": "generated_text", "datatype": "BYTES", "shape": [1], "data": ["ho"]}],
    "timings": {"initialize_s": 1.5, "infer_s": 0.5},
}


def read(folder: Path, report: Any, log: str = "") -> validation.Validation:
    (folder / "report.json").write_text(report if isinstance(report, str) else json.dumps(report))
    (folder / "log").write_text(log)
    return validation.read(folder / "report.json", folder / "log")


def test_a_good_report_gives_schema_outputs_and_times(tmp_path: Path) -> None:
    found = read(tmp_path, GOOD)
    assert found.schema.inputs[0].name == "prompt"
    assert found.schema.outputs is not None and found.schema.outputs[0].name == "generated_text"
    assert found.outputs[0]["data"] == ["ho"] and found.seconds == {"initialize": 1.5, "infer": 0.5}
    assert found.schema_json == GOOD["schema"]


def test_a_failure_names_the_line_and_what_to_do(tmp_path: Path) -> None:
    failed = GOOD | {
        "ok": False,
        "phase": "import",
        "error": "ModuleNotFoundError: No module named 'einops'",
        "line": "app.py:1: import einops",
        "traceback": "Traceback ...",
    }
    with pytest.raises(
        AppError, match=r"app\.py could not be imported: .*einops.* \(app\.py:1: import einops\)"
    ) as caught:
        read(tmp_path, failed)
    assert "`einops`" in caught.value.hint and caught.value.detail == "Traceback ..."


@pytest.mark.parametrize(
    ("error", "hint"),
    [
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate", "larger GPU"),
        ("OSError: offline mode is enabled", "HF_HUB_OFFLINE"),
        ("KeyError: 'promt'", "`promt`"),
        ("ZeroDivisionError: division by zero", "deploy again"),
    ],
)
def test_the_hint_fits_the_error(tmp_path: Path, error: str, hint: str) -> None:
    with pytest.raises(AppError) as caught:
        read(tmp_path, GOOD | {"ok": False, "phase": "infer", "error": error})
    assert hint in caught.value.hint


def test_a_process_that_was_ended_shows_its_last_lines(tmp_path: Path) -> None:
    log = "".join(f"line {i}\n" for i in range(100))
    with pytest.raises(AppError, match="ended during initialize") as caught:
        read(tmp_path, GOOD | {"ok": False, "phase": "initialize", "unfinished": True}, log)
    assert caught.value.detail.splitlines()[0] == "line 80" and caught.value.detail.endswith("line 99")


def test_no_report_or_half_of_one_is_an_error_too(tmp_path: Path) -> None:
    with pytest.raises(AppError, match="before it could say anything"):
        read(tmp_path, '{"ok": tr')
    with pytest.raises(AppError, match="before it could say anything"):
        validation.read(tmp_path / "none.json", tmp_path / "none.log")
