"""The demo's archive and its query pictures."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from mcip_qdrant.server.sample_photos import build_archive, sample_photos

__all__ = ["build_archive", "build_queries", "sample_photos"]


def build_queries(folder: Path) -> list[Path]:
    """Write one query picture per photograph: half size and recompressed, so that no file equals one of the archive."""
    folder.mkdir(parents=True, exist_ok=True)
    queries = []
    for path in sample_photos():
        with Image.open(path) as opened:
            photo = opened.convert("RGB")
        query = folder / f"{path.stem}.jpg"
        photo.resize((photo.width // 2, photo.height // 2), Image.Resampling.BICUBIC).save(query, quality=80)
        queries.append(query)
    return queries
