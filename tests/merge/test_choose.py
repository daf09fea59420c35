"""The choice of the base by measurement: what `auto` keeps, removes and says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from merge import tiny
from merge.conftest import Trained
from puna.home import Home
from puna.merge.choose import MAX_AUTO_RISE, choose, merge_and_verify
from puna.merge.stream import merge

# PEFT asks transformers by a name that the latter has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

FIGURES = replace(tiny.FIGURES, base="", exact=False, passed=True)


@dataclass
class Measured:
    """A real trained model that claims another held-out loss: the one number on which the choice hangs."""

    real: tiny.PeftTrained
    better_by: float

    def loss(self, rows: Sequence[tuple[np.ndarray, np.ndarray]]) -> float:
        return self.real.loss(rows) - self.better_by

    def __getattr__(self, name: str) -> object:
        return getattr(self.real, name)


@pytest.fixture
def home(made: Trained, tmp_path: Path) -> Home:
    return replace(made.home, root=tmp_path)


def run(made: Trained, home: Home, trained: object, **sections: object) -> tuple[object, ...]:
    recipe = tiny.recipe(**sections)
    return merge_and_verify(
        made.adapter, made.base, home, recipe=recipe, base_ref="tiny", dataset=made.dataset, trained=trained
    )


def test_auto_takes_the_original_base_when_it_is_no_worse_and_removes_the_other(
    made: Trained, home: Home, trained: tiny.PeftTrained
) -> None:
    model, found, why = run(made, home, Measured(trained, better_by=-5.0))
    assert found.base == "original" and found.passed, found.reasons
    assert why.startswith("original: held-out loss ") and "as trained" in why
    assert [p.name for p in home.models.iterdir()] == [model.path.name]
    assert model.manifest.metrics["verification"]["merged_loss"] == found.merged_loss


def test_auto_takes_the_dequantised_base_when_the_original_is_worse(
    made: Trained, home: Home, trained: tiny.PeftTrained
) -> None:
    model, found, why = run(made, home, Measured(trained, better_by=0.5))
    assert found.base == "dequantised" and why.startswith("dequantised: ")
    # Half a nat from what it claims to be: no merge of it passes.
    assert not found.passed
    assert [p.name for p in home.models.iterdir()] == [model.path.name]


def test_the_choice_turns_at_the_limit_and_names_all_three_losses() -> None:
    def why(original: float) -> tuple[str, str]:
        found = {"original": original, "dequantised": 1.0004}
        return choose({b: replace(FIGURES, merged_loss=loss) for b, loss in found.items()}, tiny.recipe())  # type: ignore

    assert why(1.0 + MAX_AUTO_RISE / 2)[0] == "original" and why(0.9)[0] == "original"
    base, text = why(1.0 + MAX_AUTO_RISE * 2)
    assert base == "dequantised" and all(figure in text for figure in ("1.0040", "1.0004", "1.0000"))
    assert why(float("nan"))[0] == "dequantised"


def test_a_loser_that_was_there_before_stays(made: Trained, home: Home, trained: tiny.PeftTrained) -> None:
    before = merge(made.adapter, made.base, home, base="dequantised", base_ref="tiny", recipe=tiny.recipe())
    model, _, _ = run(made, home, Measured(trained, better_by=-5.0))
    assert {p.name for p in home.models.iterdir()} == {before.path.name, model.path.name}


def test_a_base_that_the_recipe_names_is_used(made: Trained, home: Home, trained: tiny.PeftTrained) -> None:
    _, found, why = run(made, home, Measured(trained, better_by=-5.0), merge={"base": "dequantised"})
    assert found.base == "dequantised" and why == "dequantised: the recipe says so"


def test_auto_without_4_bits_has_nothing_to_compare(made: Trained, home: Home) -> None:
    trained = tiny.PeftTrained.load(made.base, made.peft, in_4bit=False)
    _, found, why = run(made, home, trained, quantization={"load_in_4bit": False})
    assert found.base == "original" and found.exact and found.passed and "not trained in 4 bits" in why
