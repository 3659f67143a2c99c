"""What `docs/serving.md` tells people to type does what it says."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from server_support import Shown

from mcip_qdrant.query import QueryEncoder
from mcip_qdrant.server.settings import Limits

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = (DOCS / "serving.md").read_text(encoding="utf-8")


def commands() -> list[str]:
    """The page's blocks that call curl."""
    return [block for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) if "curl" in block]


@pytest.fixture
def answers(shown: Shown, tmp_path: Path) -> list[dict[str, Any]]:
    """What each of them prints, in a folder with a `car.jpg`."""
    if shutil.which("curl") is None:
        if os.environ.get("CI"):
            pytest.fail("CI must not skip this: curl is not installed: apt-get install curl")
        pytest.skip("curl is not installed: NOT CHECKED")
    shutil.copy(shown.folder / "photo-0011.jpg", tmp_path / "car.jpg")
    found = []
    for command in commands():
        here = command.replace("http://localhost:8000/", shown.served.url)
        done = subprocess.run(["bash", "-c", here], cwd=tmp_path, capture_output=True, text=True, check=True)
        found.append(json.loads(done.stdout))
    return found


def test_curl_gets_vectors_that_find_the_right_picture(shown: Shown, answers: list[dict[str, Any]]) -> None:
    words, infinity, vllm, search = answers
    with QueryEncoder.open(shown.bundle, device="cpu", threads=2) as encoder:
        np.testing.assert_allclose(words["data"][0]["embedding"], encoder.text("a red car in the snow"), atol=1e-5)
    for answer in (infinity, vllm):
        (first,) = shown.served.search(vector=answer["data"][0]["embedding"], limit=1)["hits"]
        assert first["key"] == "photos/photo-0011.jpg"
    assert len(search["hits"]) == 5


def test_the_limits_are_those_of_the_code() -> None:
    limits = Limits()
    rows = dict(
        re.findall(r"^\| (.+?) \| (.+?) \|$", PAGE.split("## Limits")[1].split("## Operating")[0], re.MULTILINE)
    )
    assert rows["body; all bodies at once"] == f"{limits.max_body_bytes >> 20} MB; {limits.buffered_bytes >> 20} MB"
    assert rows["picture"].startswith(f"{limits.max_pixels // 1_000_000} megapixels")
    assert rows["texts, pictures in one request"] == f"{limits.max_texts:,}, {limits.max_images}"
    assert rows["a text"] == (
        f"{limits.max_text_chars:,} characters, {limits.max_text_lines:,} lines, {limits.max_marks:,} combining marks in a row"
    )
    assert rows["hits in one answer; offset"] == f"{limits.max_hits}; {limits.max_offset:,}"
    assert rows["texts that wait for the tokenizer or the model; pictures for the decoder or the model"].startswith(
        f"{limits.waiting_rows:,}; {limits.waiting_rows // 8:,}. Also refused: what would wait longer than {limits.patience_s:.0f} s"
    )
    assert rows["requests at once; connections"] == f"{limits.requests_at_once}; {limits.connections}"
    assert rows["upload"].startswith(
        f"slower than {limits.min_bytes_per_s >> 10} kB/s for more than {limits.upload_grace_s:.0f} s"
    )
    assert rows["head of a request"] == f"{limits.header_timeout_s:.0f} s"
    assert rows["an answer that the client does not take"] == f"{limits.send_timeout_s:.0f} s"


def test_its_pictures_are_there_and_small() -> None:
    named = re.findall(r"images/[\w-]+\.png", PAGE)
    assert len(named) == 2
    assert all(1000 < (DOCS / name).stat().st_size < 300_000 for name in named)
