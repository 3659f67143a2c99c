"""Real photographs, and archives of small cuttings from them."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from PIL import Image
from sample_photos import sample_photos


@cache
def photo_paths() -> tuple[Path, ...]:
    """Paths of the demo's sample photographs, which ship inside scikit-image and scikit-learn."""
    return tuple(sample_photos())


def write_archive(folder: Path, count: int, *, side: int = 160) -> list[Path]:
    """Write `count` different JPEGs cut from the photographs."""
    folder.mkdir(parents=True, exist_ok=True)
    sources = [Image.open(path).convert("RGB") for path in photo_paths()]
    written = []
    for index in range(count):
        source = sources[index % len(sources)]
        step = index // len(sources)
        width, height = min(source.width, 200 + 13 * (step % 7)), min(source.height, 190 + 11 * (step % 5))
        left = 37 * step % max(1, source.width - width)
        top = 29 * step % max(1, source.height - height)
        picture = source.crop((left, top, left + width, top + height))
        picture.thumbnail((side, side))
        path = folder / f"photo-{index:04}.jpg"
        picture.save(path, quality=90)
        written.append(path)
    return written
