"""What is committed of the small world belongs together: results, page, card, and the script that made them."""

from __future__ import annotations

import json
import statistics
from typing import Any

import pytest
from small_world import COLUMNS, PAGE, RESULTS, ROWS, SEEDS, commands, table
from small_world_model import MODEL, SEED

from mcip_qdrant.world.architecture import CARD, WEIGHTS
from mcip_qdrant.world.scenes import WORLD_SEED

FOUND: list[dict[str, Any]] = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("seed-*.json"))]
# Half precision and the order of sums move a figure by this much at most; a seed moves it by more.
CLOSE = 0.005


def test_every_seed_is_there() -> None:
    assert [result["seed"] for result in FOUND] == list(SEEDS)


@pytest.mark.parametrize("result", FOUND, ids=lambda result: f"seed-{result['seed']}")
def test_a_result_is_of_this_world_and_of_these_commands(result: dict[str, Any]) -> None:
    assert result["world_seed"] == WORLD_SEED
    assert result["commands"] == commands(result["seed"])
    assert result["data_hash"] == FOUND[0]["data_hash"]
    assert set(result["figures"]) == set(ROWS)
    for figures in result["figures"].values():
        assert set(figures) == set(COLUMNS)
        assert all(0 < value < 1 for value in figures.values())


def test_the_page_shows_the_results() -> None:
    assert "\n".join(table(FOUND)) in PAGE.read_text(encoding="utf-8")


def test_the_table_shows_what_the_page_says_it_shows() -> None:
    """The paper's claims in small, on the mean over seeds, and for image search on each seed."""

    def mean(row: str, figure: str) -> float:
        return statistics.mean(result["figures"][row][figure] for result in FOUND)

    for result in FOUND:
        found = result["figures"]
        for tuned in ("gpr", "2sft", "mcip", "mcip-realign"):
            assert found[tuned]["image_map"] > found["base"]["image_map"] + 0.05
    for text in ("text_recall_at_1", "text_recall_at_5"):
        assert mean("gpr", text) < mean("base", text)
        assert mean("2sft", text) > mean("gpr", text)
        assert mean("mcip", text) > mean("gpr", text)
        assert mean("mcip-realign", text) > mean("mcip", text)


def test_the_card_is_of_the_seed_and_model_that_were_fixed_before() -> None:
    card = json.loads(CARD.read_text(encoding="utf-8"))
    trained = FOUND[SEED]
    assert card["seed"] == trained["seed"] == SEED
    assert card["commands"] == trained["commands"]
    assert card["test_data_hash"] == trained["data_hash"]
    for figure, value in card["test_figures"].items():
        assert value == pytest.approx(trained["figures"][MODEL][figure], abs=CLOSE), figure


def test_the_weights_are_small_and_can_be_read_by_everybody() -> None:
    assert WEIGHTS.stat().st_size < 4_000_000
    assert WEIGHTS.stat().st_mode & 0o444 == 0o444
