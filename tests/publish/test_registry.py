"""The registry: versions that stay, aliases that move, and what it refuses."""

from __future__ import annotations

import multiprocessing
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from puna.artifacts import Model
from puna.errors import ConflictError, NotFoundError, PublishError, UsageError
from puna.home import Home
from puna.publish.registry import Registry

Make = Callable[..., Model]


@pytest.fixture
def registry(home: Home) -> Registry:
    return Registry(home)


def test_versions_count_up_and_latest_follows(registry: Registry, make_model: Make) -> None:
    first = registry.publish(make_model("one"), "acme/chat")
    second = registry.publish(make_model("two"), "acme/chat")
    assert (first.version, second.version) == (1, 2) and first.digest != second.digest
    assert registry.resolve("acme/chat") == second and registry.resolve("acme/chat@latest") == second
    old = registry.resolve("acme/chat:1")
    assert old.path == first.path and old.aliases == () and old.lineage["base"] == "hub:acme/base@abc"


def test_the_same_digest_keeps_its_version(registry: Registry, make_model: Make) -> None:
    first = registry.publish(make_model("one"), "acme/chat")
    registry.publish(make_model("two"), "acme/chat")
    again = registry.publish(make_model("one"), "acme/chat", aliases=("champion",))
    assert (again.version, again.created) == (1, first.created) and again.aliases == ("champion",)
    assert [v.version for v in registry.list()] == [1, 2]


def test_an_alias_moves_and_names_a_version(registry: Registry, make_model: Make) -> None:
    for text in ("one", "two"):
        registry.publish(make_model(text), "acme/chat")
    assert registry.alias("acme/chat:1", "champion").aliases == ("champion",)
    assert registry.resolve("acme/chat@champion").version == 1
    registry.alias("acme/chat:2", "champion")
    assert registry.resolve("acme/chat@champion").version == 2


@pytest.mark.parametrize(
    ("verification", "says"),
    [(None, "nobody checked"), ({"passed": False, "reasons": ["held-out loss rose"]}, "held-out loss rose")],
)
def test_an_unverified_model_is_refused_unless_forced(
    registry: Registry, make_model: Make, verification: object, says: str
) -> None:
    model = make_model("one", verification)
    with pytest.raises(PublishError, match=says) as caught:
        registry.publish(model, "acme/chat")
    assert "--force" in caught.value.hint and registry.list() == []
    assert registry.publish(model, "acme/chat", force=True).version == 1


def test_a_verification_handed_over_counts_before_the_manifests(registry: Registry, make_model: Make) -> None:
    with pytest.raises(PublishError):
        registry.publish(make_model("one"), "acme/chat", verification={"passed": False})
    assert registry.publish(make_model("two", None), "acme/chat", verification={"passed": True}).version == 1


@pytest.mark.parametrize("name", ["chat", "a/b/c", "../x", "acme/..", "acme/a--b", "acme/", "acme/a b", "-a/b", "a/b."])
def test_a_bad_name_is_refused(registry: Registry, make_model: Make, name: str) -> None:
    with pytest.raises(UsageError, match="is not a name"):
        registry.publish(make_model("one"), name)


@pytest.mark.parametrize("ref", ["acme/chat:0", "acme/chat:x", "acme/chat@2", "acme/chat@"])
def test_a_bad_version_or_alias_is_refused(registry: Registry, ref: str) -> None:
    with pytest.raises(UsageError):
        registry.resolve(ref)


def test_a_misspelt_name_alias_or_version_is_answered_with_the_nearest(registry: Registry, make_model: Make) -> None:
    registry.publish(make_model("one"), "acme/llama3-chat")
    for ref, hint in (
        ("acme/lama3-chat", "acme/llama3-chat"),
        ("acme/llama3-chat@latst", "latest"),
        ("acme/llama3-chat:7", "its versions: 1"),
    ):
        with pytest.raises(NotFoundError) as caught:
            registry.resolve(ref)
        assert hint in caught.value.hint


def test_what_an_alias_points_to_is_not_deleted_unless_forced(registry: Registry, make_model: Make) -> None:
    first, second = (registry.publish(make_model(text), "acme/chat") for text in ("one", "two"))
    registry.delete("acme/chat:1")
    assert not first.path.exists() and second.path.exists()
    with pytest.raises(ConflictError, match="@latest"):
        registry.delete("acme/chat:2")
    registry.delete("acme/chat:2", force=True)
    assert registry.list() == []
    with pytest.raises(NotFoundError):
        registry.resolve("acme/chat")
    assert registry.publish(make_model("three"), "acme/chat").version == 3, "numbers are not used again"


def test_deleting_a_name_keeps_weights_that_another_name_needs(registry: Registry, make_model: Make) -> None:
    model = make_model("one")
    registry.publish(model, "acme/chat")
    other = registry.publish(model, "acme/other")
    registry.delete("acme/chat", force=True)
    assert registry.resolve("acme/other") == other and other.path.is_dir()


def test_a_version_whose_weights_are_gone_says_so(registry: Registry, make_model: Make) -> None:
    shutil.rmtree(registry.publish(make_model("one"), "acme/chat").path)
    with pytest.raises(NotFoundError, match="weights are gone"):
        registry.resolve("acme/chat")


def test_a_damaged_file_is_named(registry: Registry, make_model: Make, home: Home) -> None:
    registry.publish(make_model("one"), "acme/chat")
    (home.registry / "acme" / "chat.json").write_text("{")
    with pytest.raises(PublishError, match="chat.json is damaged"):
        registry.resolve("acme/chat")


def publish_many(root: Path, digests: list[str]) -> None:
    for digest in digests:
        model = Model.open(root / "models" / digest[:16])
        Registry(Home(root)).publish(model, "acme/chat")


@pytest.mark.process
def test_processes_that_publish_at_once_lose_no_version(home: Home, make_model: Make) -> None:
    digests = [make_model(str(i)).digest for i in range(24)]
    context = multiprocessing.get_context("spawn")
    publishers = [context.Process(target=publish_many, args=(home.root, digests[i::3])) for i in range(3)]
    for process in publishers:
        process.start()
    for process in publishers:
        process.join(60)
        assert process.exitcode == 0
    versions = Registry(home).list()
    assert [v.version for v in versions] == list(range(1, 25)) and {v.digest for v in versions} == set(digests)


def test_of_many_that_change_the_registry_one_is_inside_at_a_time(home: Home) -> None:
    inside, most = [0], [0]

    def change() -> None:
        registry = Registry(home)
        for _ in range(20):
            with registry._locked():
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                time.sleep(0.001)
                inside[0] -= 1

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(change) for _ in range(4)]:
            done.result(30)
    assert most == [1]
