"""inferless.yaml in all the forms that are out there."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from puna import names
from puna.config import project
from puna.errors import ProjectError


def load(folder: Path, text: str) -> project.Project:
    (folder / "inferless.yaml").write_text(text)
    return project.load(folder)


def test_the_tutorials_file_is_read(tutorial: Path) -> None:
    found = project.load(tutorial)
    said = found.settings
    assert (found.name, found.version, said["gpu_type"]) == ("llama-3", "1.0.0", "A100")
    assert (said["min_replica"], said["max_replica"]) == (0, 1)
    assert (
        said["scale_down_delay_s"],
        said["evict_after_s"],
        said["inference_time_s"],
    ) == (600, 3600, 180)
    assert said["is_dedicated"] and said["container_concurrency"] == 0
    assert found.runtime_name is None and said["volumes"] == {}
    assert found.runtime_file == "inferless-runtime-config.yaml"
    assert said["env"] == {} and said["secrets"] == [] and found.warnings == ()


def test_a_file_of_version_2_has_the_defaults(tmp_path: Path) -> None:
    found = load(
        tmp_path,
        "version: 2.0.0\nname: a\nimport_source: LOCAL\nsource_framework_type: PYTORCH\nsecrets: [{name: hf}]\n",
    )
    said = found.settings
    assert (found.name, found.version, said["max_replica"], said["secrets"]) == (
        "a",
        "2.0.0",
        1,
        ["hf"],
    )
    assert found.warnings == ()


def test_no_file_at_all_takes_the_folders_name(tmp_path: Path) -> None:
    folder = tmp_path / "my-app"
    folder.mkdir()
    assert project.load(folder).name == "my-app"
    assert project.load(folder).runtime_file is None


def test_settings_come_as_numbers_or_as_text(tmp_path: Path) -> None:
    text = """
name: a
configuration:
  custom_runtime_name: rt
  custom_runtime_version: '3'
  custom_volume_name: vol
  container_concurrency: '8'
  min_replica: 1
  max_replica: '4'
  is_dedicated: 'false'
  scale_down_delay: '5'
  evict_after: '0'
  inference_time: 7200
  vcpu: '20.0'
  ram: '200'
env: {A: 1, B: true, C: null, D: x}
secrets: [one, one, two]
models: acme/chat
"""
    found = load(tmp_path, text)
    said = found.settings
    assert (found.runtime_name, found.runtime_version) == ("rt", 3)
    assert (said["container_concurrency"], said["min_replica"], said["max_replica"]) == (
        8,
        1,
        4,
    )
    assert (
        said["is_dedicated"],
        said["scale_down_delay_s"],
        said["inference_time_s"],
    ) == (False, 5, 7200)
    assert (said["vcpu"], said["ram_gib"], said["evict_after_s"]) == (20, 200, 0)
    assert said["env"] == {"A": "1", "B": "true", "C": "", "D": "x"}
    assert said["secrets"] == ["one", "two"] and found.models == ("acme/chat",)


def test_env_may_be_a_list_of_pairs(tmp_path: Path) -> None:
    assert load(tmp_path, "name: a\nenv: [A=1, B=x=y]\n").settings["env"] == {"A": "1", "B": "x=y"}


def test_null_means_empty_everywhere(tmp_path: Path) -> None:
    found = load(tmp_path, "name:\nconfiguration:\nenv:\nsecrets:\noptional:\nmodels:\n")
    said = found.settings
    assert found.name == names.normalise(tmp_path.name) and said["max_replica"] == 1


def test_near_misspellings_warn_and_strangers_do_not(tmp_path: Path) -> None:
    found = load(tmp_path, "name: a\ndescription: x\nmy_tool: 1\nsecret: []\nconfiguration: {min_replicas: 2}\n")
    assert len(found.warnings) == 2
    assert "`secrets`" in found.warnings[0] and "`min_replica`" in found.warnings[1]


def test_a_setting_outside_its_section_warns(tmp_path: Path) -> None:
    found = load(tmp_path, "name: a\nmax_replica: 3\n")
    said = found.settings
    assert "under `configuration:`" in found.warnings[0] and said["max_replica"] == 1


def test_a_name_becomes_fit_for_an_address(tmp_path: Path) -> None:
    found = load(tmp_path, "name: Whisper large/v3!\n")
    assert found.name == "whisper-large-v3" and "'whisper-large-v3' here" in found.warnings[0]
    assert load(tmp_path, "name: '///'\n").name == "", "whoever deploys it gives it a name"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("min_replica", "two"),
        ("min_replica", -1),
        ("min_replica", 1.5),
        ("max_replica", []),
        ("inference_time", 0),
        ("inference_time", 7201),
        ("scale_down_delay", "nan"),
        ("evict_after", -1),
        ("evict_after", "never"),
        ("container_concurrency", 101),
        ("scale_down_delay", 86401),
        ("max_replica", 1001),
        ("vcpu", 5000),
        ("ram", 70000),
        ("is_dedicated", "perhaps"),
        ("min_replica", 5),
    ],
)
def test_a_setting_that_makes_no_sense_is_named(tmp_path: Path, key: str, value: Any) -> None:
    with pytest.raises(ProjectError, match=key):
        load(tmp_path, yaml.safe_dump({"name": "a", "configuration": {key: value}}))


@pytest.mark.parametrize(
    "text", ["- a\n", "a: [\n", "env: 3\n", "env: {'A-B': 1}\n", "models: {a: b}\n", "configuration: 3\n"]
)
def test_a_file_of_the_wrong_shape_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ProjectError):
        load(tmp_path, text)


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ProjectError, match="no folder"):
        project.load(tmp_path / "nowhere")


def test_an_alias_bomb_is_refused_in_a_moment(tmp_path: Path) -> None:
    levels = "".join(f"x{i}: &x{i} [{', '.join([f'*x{i - 1}'] * 9)}]\n" for i in range(1, 12))
    for line in ("env: {A: *x11}", "env: *x11", "name: *x11", "models: *x11", "configuration: {vcpu: *x11}"):
        with pytest.raises(ProjectError) as caught:
            load(tmp_path, f"x0: &x0 [a]\n{levels}{line}\n")
        assert len(caught.value.message) < 1000


def test_serve_is_model_or_adapter(tmp_path: Path) -> None:
    assert load(tmp_path, "name: x\n").serve == "model"
    assert load(tmp_path, "serve: adapter\n").serve == "adapter"
    with pytest.raises(ProjectError, match="`serve` is 'adaptor'"):
        load(tmp_path, "serve: adaptor\n")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("volumes: [data]", {"data": ""}),
        ("volumes: data", {"data": ""}),
        ("volumes:\n  - data: /srv/data\n  - more", {"data": "/srv/data", "more": ""}),
        ("volumes:\n  data: /srv/data", {"data": "/srv/data"}),
        ("volumes: null", {}),
        ("configuration: {custom_volume_name: '', custom_volume_id: ''}", {}),
        ("configuration: {custom_volume_name: vol, custom_volume_id: 0a1b}", {"vol": ""}),
        ("configuration: {custom_volume_id: 0a1b}\nvolumes: [data]", {"0a1b": "", "data": ""}),
    ],
)
def test_volumes_in_the_platforms_words_and_in_ours(tmp_path: Path, text: str, expected: dict[str, str]) -> None:
    (tmp_path / "inferless.yaml").write_text(text)
    found = project.load(tmp_path)
    said = found.settings
    assert said["volumes"] == expected and not [w for w in found.warnings if "volume" in w]


@pytest.mark.parametrize("text", ["volumes: 3", "volumes: [3]", "volumes: [{data: [x]}]"])
def test_volumes_that_make_no_sense_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "inferless.yaml").write_text(text)
    with pytest.raises(ProjectError, match="volumes"):
        project.load(tmp_path)
