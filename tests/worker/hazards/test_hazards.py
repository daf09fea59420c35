"""Two callers never meet: apps that keep something of a request answer each caller with its own words only.

Each is first shown to be a hazard: sixteen at once because somebody asked for that, it mixes replies. Nobody asks in
the second run. Clean apps beside them run at once all the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from worker.hazards.corpus import ENGINES, Story, stories
from worker.hazards.harness import CALLERS, SURELY, Forker

pytestmark = pytest.mark.process
BATCHED = ("vllm", "transformers")


@pytest.fixture(scope="module")
def forker(pyz: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forker]:
    made = Forker(pyz, tmp_path_factory.mktemp("hz"))
    yield made
    made.end()


@pytest.mark.parametrize("story", stories("apps"), ids=str)
def test_an_app_that_keeps_something_of_a_request_never_hands_it_to_another(story: Story, forker: Forker) -> None:
    asked = forker.start(story, CALLERS)
    forced = asked.meet(until_mixed=True)
    asked.end()
    assert forced.mixed, f"{story} is no hazard: {forced}"
    served = forker.start(story, 0)
    found = served.meet(max(4 * CALLERS, SURELY * forced.replies))
    served.end()
    print(f"{story}: {found}")
    assert (len(found.foreign), len(found.different), len(found.failed)) == (0, 0, 0), f"{story}: {found}"


@pytest.mark.parametrize("story", stories("clean"), ids=str)
def test_an_app_that_keeps_nothing_runs_at_once_and_each_hears_its_own(story: Story, forker: Forker) -> None:
    served = forker.start(story, 0)
    found = served.meet()
    widest, places = served.widest, served.said["concurrency"]
    served.end()
    print(f"{story}: {found} {places} places, {widest} in one step")
    assert (len(found.foreign), len(found.different), len(found.failed)) == (0, 0, 0), f"{story}: {found}"
    assert places > 1 and found.together > 1, f"{story} runs one at a time"
    assert widest > 1 or story.engine not in BATCHED, f"{story}: the engine saw one request at a time"


def test_the_corpus_is_large_enough_and_spread_over_the_engines() -> None:
    hazards, clean = (Counter(story.engine for story in stories(kind)) for kind in ("apps", "clean"))
    assert hazards.total() >= 40 and clean.total() >= 20, (hazards, clean)
    assert all(hazards[engine] >= 8 for engine in ENGINES), hazards
