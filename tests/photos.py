"""Real photographs that ship inside scikit-image and scikit-learn."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path

from PIL import Image

_NAMES = (
    "astronaut.png",
    "brick.png",
    "camera.png",
    "chelsea.png",
    "coffee.png",
    "coins.png",
    "color.png",
    "grass.png",
    "gravel.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "moon.png",
    "motorcycle_left.png",
    "page.png",
    "retina.jpg",
    "rocket.jpg",
)


def _package_folder(package: str) -> Path:
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise RuntimeError(f"{package} is not installed; it brings the sample photographs: pip install -e .[test]")
    return Path(spec.origin).parent


@cache
def photo_paths() -> tuple[Path, ...]:
    """Paths of all sample photographs."""
    paths = [_package_folder("skimage") / "data" / name for name in _NAMES]
    paths += [_package_folder("sklearn") / "datasets" / "images" / name for name in ("china.jpg", "flower.jpg")]
    return tuple(path for path in paths if path.is_file())


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
