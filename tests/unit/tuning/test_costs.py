"""Every figure in the cost tables of docs/tuning.md follows from the formulas beside them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

page = (Path(__file__).resolve().parents[3] / "docs" / "tuning.md").read_text(encoding="utf-8")

SPEED, CC12M, IMAGES, KEPT = 100e12, 10_968_539, 100_000, 1 - 0.33
MODELS = {
    # forward FLOP of an image and a text, parameters of the towers, dimensions, tokens, width, layers
    0: (381.9e9, 13.3e9, 304.29e6, 123.65e6, 768, 577, 1024, 24),
    1: (670.4e9, 53.1e9, 428.23e6, 449.73e6, 1152, 729, 1152, 27),
}


def table(name: str) -> dict[str, list[str]]:
    """First cell -> the other cells, of the table after a marker."""
    (marked,) = re.findall(rf"^<!-- table: {name} -->\n\n((?:\|.*\n)+)", page, re.MULTILINE)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in marked.splitlines()]
    return {row[0]: row[1:] for row in rows[2:]}


@pytest.mark.parametrize("column", [0, 1])
def test_time(column: int) -> None:
    image, text, *_ = MODELS[column]
    step = 4 * KEPT * image
    expected = {
        "F, T in GFLOP": f"{image / 1e9:.1f}, {text / 1e9:.1f}",
        "training, images a second": f"{SPEED / step:.0f}",
        "`captions`: vectors of CC12M's captions, hours": f"{CC12M * text / SPEED / 3600:.1f}",
        "`captions`: vectors of 100,000 images, minutes": f"{IMAGES * image / SPEED / 60:.1f}",
        "`gpr` or `mcip`: 3 epochs, hours": f"{3 * IMAGES * step / SPEED / 3600:.1f}",
        "evaluations at 200 an epoch, hours": f"{3 * 200 * 5000 * image / SPEED / 3600:.1f}",
        "evaluations at 10 an epoch, hours": f"{3 * 10 * 5000 * image / SPEED / 3600:.1f}",
        "`realign` on 100,000 pairs, 50 epochs, hours": f"{50 * 0.95 * IMAGES * 1.2 * text / SPEED / 3600:.1f}",
        "`realign` on CC12M: image vectors, hours": f"{CC12M * image / SPEED / 3600:.1f}",
        "`realign` on CC12M: one epoch, hours": f"{0.95 * CC12M * 1.2 * text / SPEED / 3600:.1f}",
    }
    assert {name: cells[column] for name, cells in table("time").items()} == expected


@pytest.mark.parametrize("column", [0, 1])
def test_memory(column: int) -> None:
    _, _, images, texts, dimensions, tokens, width, layers = MODELS[column]
    expected = {
        "parameters, image and text, in millions": f"{images / 1e6:.2f}, {texts / 1e6:.2f}",
        "weights, gradients, moments, GB": f"{(16 * images + 4 * texts) / 1e9:.1f}",
        "activations at batch 128, GB": f"{128 * KEPT * tokens * width * (4 * layers + 68) / 1e9:.1f}",
        "`state.pt`, GB": f"{12 * images / 1e9:.1f}",
        "`model.pth`, GB": f"{4 * (images + texts) / 1e9:.1f}",
        "stored vectors of CC12M's captions, GB": f"{CC12M * dimensions * 4 / 1e9:.1f}",
    }
    assert {name: cells[column] for name, cells in table("memory").items()} == expected


def test_prices_and_proxies() -> None:
    hours = [
        CC12M * text / SPEED / 3600
        + IMAGES * image / SPEED / 3600
        + (3 * IMAGES * 4 * KEPT + 3 * 10 * 5000) * image / SPEED / 3600
        for image, text, *_ in MODELS.values()
    ]
    assert "about {} and {} dollars".format(*(f"{2 * spent:.0f}" for spent in hours)) in page
    assert f"{16 * 100_000 * 768 / 1e9:.1f} GB for 100,000 classes" in page
