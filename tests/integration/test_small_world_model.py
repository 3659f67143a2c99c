"""The committed demo model, exported and measured on the whole test split, against the figures on its card."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from cli_support import run

from mcip_qdrant import QueryEncoder
from mcip_qdrant.world.architecture import CARD, export_command
from mcip_qdrant.world.archive import DataHash, Picture, pictures
from mcip_qdrant.world.measure import FIGURES, measure
from mcip_qdrant.world.render import draw, jpeg, random_view

# The card's figures are torch's on one machine's JPEG files; libjpeg's versions differ in a few pixels.
CLOSE = 0.01


@pytest.fixture(scope="module")
def card() -> dict[str, object]:
    found: dict[str, object] = json.loads(CARD.read_text(encoding="utf-8"))
    return found


@dataclass(frozen=True)
class DrawnSplit:
    """The test split, drawn once: its pictures, their JPEG files' bytes, and the hash of what was drawn."""

    pictures: list[Picture]
    files: list[bytes]
    data_hash: str


@pytest.fixture(scope="module")
def test_split(card: dict[str, object]) -> DrawnSplit:
    seed = int(str(card["world_seed"]))
    made, files, digest = pictures("test", seed=seed), [], DataHash()
    for picture in made:
        view = random_view(picture.scene, picture.view, seed=seed)
        pixels = draw(picture.scene, view)
        digest.add(picture, view, pixels)
        files.append(jpeg(pixels, view))
    return DrawnSplit(made, files, digest.hexdigest())


def test_the_test_split_is_the_one_of_the_card(test_split: DrawnSplit, card: dict[str, object]) -> None:
    assert test_split.data_hash == card["test_data_hash"]


def test_the_exported_model_has_the_figures_of_its_card(
    test_split: DrawnSplit, card: dict[str, object], tmp_path: Path
) -> None:
    files = test_split.files
    bundle = tmp_path / "bundle"
    run(*export_command(bundle), cwd=tmp_path)
    with QueryEncoder.open(bundle, device="cpu") as encoder:
        images = np.concatenate([encoder.images(files[start : start + 64]) for start in range(0, len(files), 64)])
        found = measure(test_split.pictures, images, encoder.texts)
    assert set(found) == set(FIGURES)
    assert found == pytest.approx(card["test_figures"], abs=CLOSE)


def test_a_model_that_knows_less_would_be_noticed(test_split: DrawnSplit, card: dict[str, object]) -> None:
    """The bound above is narrower than what an untrained model's vectors reach."""
    random = np.random.RandomState(0)

    def unit(rows: int) -> np.ndarray:
        made = random.standard_normal((rows, 64)).astype(np.float32)
        return made / np.linalg.norm(made, axis=1, keepdims=True)

    found = measure(test_split.pictures, unit(len(test_split.pictures)), lambda texts: unit(len(texts)))
    figures = card["test_figures"]
    assert isinstance(figures, dict)
    assert all(found[name] < figures[name] - 10 * CLOSE for name in FIGURES)
