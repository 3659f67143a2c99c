"""Every figure in the tables of docs/deploying.md follows from the formula beside it."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest

from mcip_qdrant.ingest import new_run_id
from mcip_qdrant.keys import ImageRef
from mcip_qdrant.points import PreparedImage, RunStamp, payload
from mcip_qdrant.read import FileState

PAGE = Path(__file__).resolve().parents[2] / "docs" / "deploying.md"
page = PAGE.read_text(encoding="utf-8")

DIMENSIONS = {768: "ViT-L-14-336", 1152: "SO400M-14-384"}
M = 16
LINKS = 2 * M * 4 + M * 4 / (M - 1)
PATH, SOURCE, ROOT_FOLDER = 32, 7, 16
CHUNK = 256


def table(name: str) -> list[list[str]]:
    """Rows of the table after a marker, without its head."""
    marked = re.findall(rf"^<!-- table: {name} -->\n\n((?:\|.*\n)+)", page, re.MULTILINE)
    assert len(marked) == 1, name
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in marked[0].splitlines()]
    assert set("".join(rows[1])) <= set("-: ")
    return rows[2:]


def number(cell: str) -> float:
    found = re.match(r"[\d,]*\.?\d+", cell)
    assert found is not None, cell
    return float(found[0].replace(",", ""))


def shown(value: float, places: int) -> float:
    return float(f"{value:.{places}f}")


def payload_bytes(path: int, source: int, root: int) -> int:
    return 310 + 2 * path + 2 * source + root


def on_disk(size: int) -> int:
    return math.ceil((size + 4) / 128) * 128


def flop(patches: int, tokens: int, width: int, hidden: int, layers: int, head: int) -> int:
    layer = 8 * tokens * width**2 + 4 * tokens * width * hidden + 4 * tokens**2 * width
    return layers * layer + 2 * patches * 3 * 14**2 * width + head


VIT_L = flop(576, 577, 1024, 4096, 24, 2 * 1024 * 768)
SO400M = flop(729, 729, 1152, 4304, 27, 4 * 729 * 1152**2 + 4 * 1152**2 + 4 * 729 * 1152 + 4 * 1152 * 4304)


def test_every_table_with_figures_is_recomputed() -> None:
    assert set(re.findall(r"<!-- table: ([\w-]+) -->", page)) == {
        "flop",
        "gpu-hours",
        "decode",
        "qdrant-parts",
        "qdrant-totals",
        "redis",
    }


def test_flop_of_both_architectures() -> None:
    rows = table("flop")
    assert [row[-1] for row in rows] == [str(round(VIT_L / 1e9)), str(round(SO400M / 1e9))] == ["382", "670"]
    vit, so400m = rows
    assert vit[1].endswith("= 576")
    assert 24 * 24 == (336 // 14) ** 2 == 576
    assert so400m[1].startswith("27 x 27 = 729")
    assert (384 // 14) ** 2 == 729
    assert int(1152 * 3.7362) == 4304
    assert [number(cell) for cell in vit[2:6]] == [577, 1024, 4096, 24]
    assert [number(cell) for cell in so400m[2:6]] == [729, 1152, 4304, 27]


def test_hours_and_images_per_second() -> None:
    rows = table("gpu-hours")
    assert len(rows) == 4
    for row in rows:
        rate = number(row[0])
        for column, gflop in ((1, 382), (3, 670)):
            assert number(row[column]) == shown(1e6 * gflop * 1e9 / (rate * 1e12) / 3600, 2)
            assert number(row[column + 1]) == round(rate * 1e3 / gflop)


def test_cores_and_bandwidth_of_decoding() -> None:
    rows = table("decode")
    assert [row[0] for row in rows] == [row[2] for row in table("gpu-hours")]
    for row in rows:
        images = number(row[0])
        assert [number(cell) for cell in row[1:4]] == [shown(images * ms / 1e3, 1) for ms in (10, 50, 200)]
        assert number(row[4]) == shown(images * 4e6 / 1e9, 2)


@pytest.mark.parametrize(("path", "source", "root"), [(32, 7, 16), (80, 12, 5), (10, 3, 40)])
def test_payload_formula_is_that_of_the_real_payload(path: int, source: int, root: int) -> None:
    image = PreparedImage(
        ImageRef("s" * source, "p" * path),
        np.zeros((1, 1, 3), np.uint8),
        "0" * 64,
        4032,
        3024,
        "JPEG",
        FileState(4_000_000, "2025-01-01T00:00:00.000000Z"),
    )
    stamp = RunStamp(new_run_id(), "2025-01-01T00:00:00Z", "exact")
    fields = payload(image, Path("/" + "r" * (root - 1)), stamp, columns={}, previous={})
    real = len(json.dumps(fields, separators=(",", ":")))
    assert abs(real - payload_bytes(path, source, root)) <= 8  # times and sizes have more or fewer digits
    assert "310 + 2*path + 2*source + root" in page


def test_payload_example() -> None:
    size = payload_bytes(PATH, SOURCE, ROOT_FOLDER)
    assert re.search(rf"{PATH}\s+characters in a source of {SOURCE} under a root of {ROOT_FOLDER}", page)
    assert re.search(rf"payload of {size}\s+bytes, {on_disk(size) // 128} blocks, {on_disk(size)} bytes", page)
    assert f"= {round(LINKS)} |" in page


def test_parts_of_a_million_points() -> None:
    rows = table("qdrant-parts")
    assert [(int(row[1]), row[0]) for row in rows] == list(DIMENSIONS.items())
    for row in rows:
        size = int(row[1])
        parts = (4 * size, 2 * size, size + 4, LINKS, on_disk(payload_bytes(PATH, SOURCE, ROOT_FOLDER)))
        assert [number(cell) for cell in row[2:]] == [shown(part / 1e3, 2) for part in parts]


def test_memory_and_disk_of_a_million_points() -> None:
    rest = LINKS + on_disk(payload_bytes(PATH, SOURCE, ROOT_FOLDER))
    rows = table("qdrant-totals")
    assert [int(row[1]) for row in rows] == [768] * 3 + [1152] * 3
    for row in rows:
        size = int(row[1])
        memory, disk = {
            "float32": (4 * size + LINKS, 4 * size + rest),
            "float16": (2 * size + LINKS, 2 * size + rest),
            "int8": (size + 4 + LINKS, 4 * size + size + 4 + rest),
        }[row[0].split()[0]]
        assert [number(row[2]), number(row[3])] == [shown(memory / 1e3, 2), shown(disk / 1e3, 2)]
    rule = [f"{size * 4 * 1.5 / 1e3:.2f} GB" for size in DIMENSIONS]
    assert re.search(rf"gives {rule[0]} per million at 768 and\s+{rule[1]} at 1152", page)


def test_ledger_and_queue() -> None:
    for row in table("redis"):
        entries = math.ceil(number(row[0]) / CHUNK)
        assert number(row[1]) == entries
        assert number(row[2]) == shown(entries * 128 / 1e6, 1)
    waiting = CHUNK * (PATH + 4) * 4 / 3 + 2000
    assert re.search(rf"takes {waiting / 1e3:.1f} kB, so 64 of them take {64 * waiting / 1e6:.1f}\s+MB", page)
    assert "`benchmarks/dispatch_memory.py`" in page, "what is measured names its script"
