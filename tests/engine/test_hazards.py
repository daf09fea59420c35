"""Hazards and clean apps of the corpus on a real vLLM: nobody hears another's words, and clean ones are batched."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from engine.test_tutorial_app import ENV
from puna.backends.local import worker_folder
from worker.conftest import Worker
from worker.hazards import copying_llama
from worker.hazards.corpus import INIT, TUTORIAL, Story
from worker.hazards.harness import CALLERS, Callers

pytestmark = [pytest.mark.process, pytest.mark.engine]

CALLS = 96  # a reply of a real engine on a CPU takes a tenth of a second
HAZARDS = ("attribute", "closure_cell", "conversation_list", "decorator", "helper_object", "params_attribute")
CLEAN = (TUTORIAL, INIT, "chat", "helper_modules", "params_of_the_request", "two_steps")
Serve = Callable[[Story, int], Callers]


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hf")
    copying_llama.write(root)
    return root


@pytest.fixture
def serve(vllm_python: str, hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """`serve(story, concurrency)` -> its callers, on a real vLLM; ends the one before."""
    workers: list[Worker] = []
    for name, value in {**ENV, "HF_HOME": str(hub), "HF_HUB_OFFLINE": "1"}.items():
        monkeypatch.setenv(name, value)

    def begin(story: Story, concurrency: int) -> Callers:
        if workers:
            workers.pop().end()  # one engine at a time
        folder = tmp_path / f"{story}, {concurrency}"
        story.write(folder / "app")
        options = ("--concurrency", str(concurrency))
        workers.append(Worker(vllm_python, worker_folder(tmp_path), folder / "app", str(tmp_path / "w.sock"), *options))
        client = workers[-1].client()
        client.socket.settimeout(600)  # vLLM's import and start
        return Callers(story, client, workers[-1].log)

    yield begin
    for worker in workers:
        worker.end()


@pytest.mark.parametrize("name", HAZARDS)
def test_a_hazard_never_hands_anything_to_another_caller(name: str, serve: Serve) -> None:
    story = Story("apps", "vllm", name)
    forced = serve(story, CALLERS).meet(CALLS, until_mixed=True)
    assert forced.mixed, f"{story} is no hazard: {forced}"
    found = serve(story, 0).meet(CALLS)
    print(f"{story}: {found}")
    assert (len(found.foreign), len(found.different), len(found.failed)) == (0, 0, 0), f"{story}: {found}"


@pytest.mark.parametrize("name", CLEAN)
def test_a_clean_app_runs_sixteen_at_once_and_each_hears_its_own(name: str, serve: Serve) -> None:
    story = Story("clean", "vllm", name)
    callers = serve(story, 0)
    found = callers.meet(CALLS)
    print(f"{story}: {found}")
    assert (len(found.foreign), len(found.different), len(found.failed)) == (0, 0, 0), f"{story}: {found}"
    assert callers.said["concurrency"] >= CALLERS and found.together > CALLERS // 2, f"{story}: {found}"
