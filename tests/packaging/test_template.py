"""`puna init`: four files that pass every check."""

import ast
from pathlib import Path
from typing import Literal

import pytest

from puna.config import project, runtime, schema
from puna.errors import ConflictError
from puna.home import Home
from puna.packaging import source, template

ENGINES: list[Literal["vllm", "transformers"]] = ["vllm", "transformers"]


@pytest.mark.parametrize("engine", ENGINES)
def test_the_four_files_pass_every_check(tmp_path: Path, engine: Literal["vllm", "transformers"]) -> None:
    folder = tmp_path / "my-app"
    written = template.init(folder, "acme/llama3-chat", name="my-app", engine=engine)
    assert [p.name for p in written] == [
        "app.py", "input_schema.py", "inferless-runtime-config.yaml", "inferless.yaml",
    ]  # fmt: skip
    source.check(folder)
    settings = project.load(folder)
    assert settings.name == "my-app" and settings.warnings == () and settings.version == "1.0.0"
    assert (settings.settings["gpu_type"] == "") == (engine == "transformers")
    assert settings.runtime_file == "inferless-runtime-config.yaml" and settings.runtime_name is None
    spec = runtime.load(folder / settings.runtime_file)
    assert all("==" in package for package in spec.python_packages)
    found = schema.read_literal(folder / "input_schema.py")
    assert found is not None and found.example_request()["inputs"][0]["data"] == ["What is AI?"]
    strings = [n.value for n in ast.walk(ast.parse((folder / "app.py").read_text())) if isinstance(n, ast.Constant)]
    assert "acme/llama3-chat" in strings


def test_writing_again_changes_nothing_and_never_overwrites_what_somebody_wrote(tmp_path: Path) -> None:
    template.init(tmp_path, "acme/a", name="a", engine="vllm")
    template.init(tmp_path, "acme/a", name="a", engine="vllm")
    (tmp_path / "app.py").write_text("mine\n")
    (tmp_path / "inferless.yaml").unlink()
    with pytest.raises(ConflictError, match=r"app\.py") as caught:
        template.init(tmp_path, "acme/a", name="a", engine="vllm")
    assert "--force" in caught.value.hint
    assert (tmp_path / "app.py").read_text() == "mine\n" and not (tmp_path / "inferless.yaml").exists()
    template.init(tmp_path, "acme/a", name="a", engine="vllm", force=True)
    assert "InferlessPythonModel" in (tmp_path / "app.py").read_text()


def test_a_model_of_any_name_stays_a_string(tmp_path: Path) -> None:
    template.init(tmp_path, 'a"; import os #', name="x: y", engine="transformers")
    source.check(tmp_path)
    assert project.load(tmp_path).name == "x-y"


def test_an_app_is_updated_to_another_version_and_stays_as_it_was_edited(tmp_path: Path) -> None:
    folder, home = tmp_path / "my-app", Home(tmp_path / "home")
    template.init(folder, "acme/chat", name="my-app", engine="vllm", published="acme/chat:1")
    app = (folder / "app.py").read_text() + "# mine\n"
    (folder / "app.py").write_text(app)
    first = source.snapshot(folder, home).digest
    template.update(folder, "acme/chat", "acme/chat:2")
    assert project.load(folder).models == ("acme/chat:2",) and (folder / "app.py").read_text() == app
    second = source.snapshot(folder, home).digest
    template.update(folder, "acme/chat", "acme/chat:2")
    assert first != second == source.snapshot(folder, home).digest
    with pytest.raises(ConflictError, match="does not name acme/other"):
        template.update(folder, "acme/other", "acme/other:1")
    assert project.load(folder).models == ("acme/chat:2",)


@pytest.mark.parametrize("models", ["", "models: [acme/chat]\n", "models:\n- acme/chat\n- acme/more\nname: x\n"])
def test_what_an_older_project_says_of_its_models_is_replaced(models: str, tmp_path: Path) -> None:
    folder = tmp_path / "my-app"
    template.init(folder, "acme/chat", name="my-app", engine="vllm")
    kept = (folder / "inferless.yaml").read_text().replace('name: "my-app"\n', "" if "name" in models else "name: x\n")
    (folder / "inferless.yaml").write_text(kept + models)
    template.update(folder, "acme/chat", "acme/chat:7")
    read = project.load(folder)
    assert read.models == ("acme/chat:7",) and read.name == "x"
