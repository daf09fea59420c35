"""Bundles: which models an app names, and what is put together for it."""

import json
import os
import sys
from pathlib import Path

import pytest

from puna.artifacts import SHORT, Bundle, Model, drafting
from puna.errors import ProjectError
from puna.home import Home
from puna.packaging import source
from puna.packaging.bundle import ModelRef, app_env, bundle, models_named
from puna.packaging.environment import Environment


@pytest.fixture
def environment(home: Home) -> Environment:
    digest = "e" * 64
    path = home.environments / digest[:SHORT]
    return Environment(path, digest, path / "venv" / "bin" / "python", ())


@pytest.fixture
def model(home: Home) -> ModelRef:
    with drafting("model", home.models) as draft:
        (draft.path / "config.json").write_text("{}")
        (draft.path / "model.safetensors").write_bytes(b"weights" * 1000)
        (draft.path / "extra").mkdir()
        (draft.path / "extra" / "note.txt").write_text("deep")
    opened = Model.open(draft.final)
    return ModelRef("acme/tiny", 1, opened.digest, opened.path)


def test_models_are_found_where_the_code_names_them(folder: Path, home: Home) -> None:
    (folder / "lib" / "more.py").write_text("A = f'acme/formatted'\nB = {'m': 'acme/other'}  # acme/comment\n")
    (folder / "lib" / "broken.py").write_text("def (:\n")
    known = {"acme/tiny", "acme/other", "acme/comment", "acme/unused"}
    assert models_named(source.snapshot(folder, home), known) == ["acme/other", "acme/tiny"]


def test_the_settings_can_pin_a_version_and_add_a_model(folder: Path, home: Home) -> None:
    (folder / "inferless.yaml").write_text("models: ['acme/tiny:2', 'acme/other@champion']\n")
    kept = source.snapshot(folder, home)
    assert models_named(kept, {"acme/tiny", "acme/other"}) == ["acme/other@champion", "acme/tiny:2"]
    with pytest.raises(ProjectError, match="acme/other@champion, which is not published") as caught:
        models_named(kept, {"acme/tiny", "acme/others"})
    assert "acme/others" in caught.value.hint


def test_a_bundle_holds_the_app_and_a_cache_view_of_hard_links(
    folder: Path, home: Home, environment: Environment, model: ModelRef
) -> None:
    kept = source.snapshot(folder, home)
    made = bundle(kept, environment, [model], home)
    assert not made.damage()
    assert (made.path / "app" / "lib" / "words.py").read_text() == "WORDS = ['深']\n"
    view = made.path / "hub" / "models--acme--tiny"
    commit = (view / "refs" / "main").read_text()
    assert len(commit) == 40 and model.digest.startswith(commit)
    weights = view / "snapshots" / commit / "model.safetensors"
    assert weights.samefile(model.path / "model.safetensors")
    assert (view / "snapshots" / commit / "extra" / "note.txt").read_text() == "deep"
    assert not (view / "snapshots" / commit / "manifest.json").exists()
    assert json.loads((made.path / "bundle.json").read_text()) == {
        "source": kept.digest,
        "environment": environment.digest,
        "models": [{"name": "acme/tiny", "version": 1, "digest": model.digest}],
    }
    assert made.manifest.made_from["model:acme/tiny"] == model.digest


def test_equal_parts_make_one_bundle(folder: Path, home: Home, environment: Environment, model: ModelRef) -> None:
    kept = source.snapshot(folder, home)
    first, second = bundle(kept, environment, [model], home), bundle(kept, environment, [model], home)
    assert first.path == second.path and len(list(home.bundles.iterdir())) == 1
    assert bundle(kept, environment, [], home).digest != first.digest
    assert Bundle.open(first.path) == first


def test_the_app_gets_nothing_of_punas_own_environment(
    folder: Path, home: Home, environment: Environment, model: ModelRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PUNA_DATABASE_URL", "postgresql://me:pass@db/puna")
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    monkeypatch.setenv("PATH", f"{sys.prefix}/bin:/usr/bin")
    made = bundle(source.snapshot(folder, home), environment, [model], home)
    env = app_env(made, extra={"GREETING": "hello"})
    assert not {"PUNA_DATABASE_URL", "HF_TOKEN", "PYTHONPATH"} & set(env)
    assert env["GREETING"] == "hello" and env["HF_HUB_OFFLINE"] == env["TRANSFORMERS_OFFLINE"] == "1"
    assert env["HF_HUB_CACHE"] == str(made.path / "hub")
    assert env["PATH"] == f"{environment.path / 'venv' / 'bin'}:/usr/bin"
    assert env["VLLM_CACHE_ROOT"].startswith(str(home.caches / made.path.name))
    assert Path(env["HOME"]).is_dir() and env["HOME"] != str(Path.home())


def test_an_app_without_published_models_may_download(folder: Path, home: Home, environment: Environment) -> None:
    env = app_env(bundle(source.snapshot(folder, home), environment, [], home), extra={})
    assert "HF_HUB_OFFLINE" not in env
    assert env["HF_HUB_CACHE"] == str(home.caches / "huggingface" / "hub")


def test_an_app_that_says_so_may_download_beside_its_published_models(
    folder: Path, home: Home, environment: Environment, model: ModelRef
) -> None:
    made = bundle(source.snapshot(folder, home), environment, [model], home)
    for _ in range(2):
        env = app_env(made, extra={"HF_HUB_OFFLINE": "0"})
    cache = Path(env["HF_HUB_CACHE"])
    assert cache != made.path / "hub" and os.access(cache, os.W_OK)
    assert (cache / "models--acme--tiny" / "refs" / "main").read_text() == model.digest[:40]
    assert env["HF_HUB_OFFLINE"] == "0" and "TRANSFORMERS_OFFLINE" not in env
