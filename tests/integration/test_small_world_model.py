"""The committed demo model, exported and measured on the whole test split, against the figures on its card."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from cli_support import run

from mcip_qdrant import QueryEncoder
from mcip_qdrant.world.architecture import CARD, export_command
from mcip_qdrant.world.archive import Picture, data_hash, write_split
from mcip_qdrant.world.measure import FIGURES, measure

# The card's figures are torch's on one machine's JPEG files; libjpeg's versions differ in a few pixels.
CLOSE = 0.01


@pytest.fixture(scope="module")
def card() -> dict[str, object]:
    found: dict[str, object] = json.loads(CARD.read_text(encoding="utf-8"))
    return found


@pytest.fixture(scope="module")
def test_split(tmp_path_factory: pytest.TempPathFactory, card: dict[str, object]) -> tuple[Path, list[Picture]]:
    folder = tmp_path_factory.mktemp("test-split")
    seed = int(str(card["world_seed"]))
    return folder, write_split(folder, "test", seed=seed, jobs=2)


def test_the_test_split_is_the_one_of_the_card(test_split: tuple[Path, list[Picture]], card: dict[str, object]) -> None:
    assert data_hash(test_split[1], seed=int(str(card["world_seed"]))) == card["test_data_hash"]


def test_the_exported_model_has_the_figures_of_its_card(
    test_split: tuple[Path, list[Picture]], card: dict[str, object], tmp_path: Path
) -> None:
    folder, pictures = test_split
    bundle = tmp_path / "bundle"
    run(*export_command(bundle), cwd=tmp_path)
    with QueryEncoder.open(bundle, device="cpu") as encoder:
        paths = [folder / picture.path for picture in pictures]
        images = np.concatenate([encoder.images(paths[start : start + 64]) for start in range(0, len(paths), 64)])
        found = measure(pictures, images, encoder.texts)
    assert set(found) == set(FIGURES)
    assert found == pytest.approx(card["test_figures"], abs=CLOSE)


def test_a_model_that_knows_less_would_be_noticed(
    test_split: tuple[Path, list[Picture]], card: dict[str, object]
) -> None:
    """The bound above is narrower than what an untrained model's vectors reach."""
    pictures = test_split[1]
    random = np.random.RandomState(0)

    def unit(rows: int) -> np.ndarray:
        made = random.standard_normal((rows, 64)).astype(np.float32)
        return made / np.linalg.norm(made, axis=1, keepdims=True)

    found = measure(pictures, unit(len(pictures)), lambda texts: unit(len(texts)))
    figures = card["test_figures"]
    assert isinstance(figures, dict)
    assert all(found[name] < figures[name] - 10 * CLOSE for name in FIGURES)
