"""What the unit tests share: small pictures, a manifest, a predictable encoder, and a child without privileges."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mcip_qdrant.manifest import Graph, Manifest, Parity, Preprocess, TokenizerConfig

SPACE_A, SPACE_B = "a" * 64, "b" * 64


def manifest(*, dim: int = 3, model: str = "Tiny-A", space_id: str = SPACE_A) -> Manifest:
    """A complete manifest of a model that does not exist."""
    parity = Parity(0.9999, 0.99999, 0.999, 1e-4, 1.0, "CPUExecutionProvider")
    sha, size = {"visual.onnx": "1" * 64, "visual.onnx.data": "2" * 64}, {"visual.onnx": 10, "visual.onnx.data": 20}
    visual = Graph("visual", "fp32", "visual.onnx", sha, size, parity, 18)
    textual = replace(visual, tower="textual", file="t.onnx", sha256={"t.onnx": "3" * 64}, bytes={"t.onnx": 5})
    return Manifest(
        model=model,
        activation="gelu",
        embedding_dim=dim,
        space_id=space_id,
        preprocess=Preprocess((8, 8), (0.5, 0.25, 0.125), (0.5, 0.5, 1.0)),
        tokenizer=TokenizerConfig(77, "lower", 0, 100, "4" * 64, "5" * 64),
        graphs=(visual, textual),
        golden_sha256="6" * 64,
        source={"checkpoint": "tiny.pt", "note": "größe %"},
        tools={"torch": "2.9"},
        architecture={"width": 4},
        created_at="2025-01-01T00:00:00Z",
        image_rules="rules",
    )


def picture(path: Path | bytes, colour: tuple[int, int, int], size: tuple[int, int] = (12, 10)) -> None:
    """Write a picture of one colour; PNG unless the name ends with .jpg."""
    raw = os.fsencode(path)
    with open(raw, "wb") as stream:  # noqa: PTH123 - names that are not UTF-8
        Image.new("RGB", size, colour).save(stream, "JPEG" if raw.endswith(b".jpg") else "PNG")


class MeanColour:
    """Mean RGB of a picture, as a unit vector. A black picture has no direction: NaN, as from a broken model."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def encode(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        assert pixels.dtype == np.uint8
        assert pixels.ndim == 4
        self.batches.append(len(pixels))
        mean = pixels.astype(np.float64).mean(axis=(1, 2))
        with np.errstate(invalid="ignore"):
            return (mean / np.linalg.norm(mean, axis=1, keepdims=True)).astype(np.float32)


@contextmanager
def open_folder() -> Iterator[Path]:
    """A temporary folder that other users may enter (pytest's own may not be)."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        folder.chmod(0o755)
        yield folder


def without_privileges(imports: str, script: str, *arguments: str) -> list[str]:
    """Run Python code as a user who owns nothing; returns the lines it printed."""
    drop = """
        import os, sys
        if os.geteuid() == 0:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
        assert os.geteuid() != 0
    """
    code = "\n".join(textwrap.dedent(part) for part in (imports, drop, script))
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()
