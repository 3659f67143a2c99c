"""The demo's archive: real photographs from scikit-image and scikit-learn, with recompressed and rescaled copies."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from PIL import Image

_SKIMAGE = (
    "astronaut.png",
    "brick.png",
    "camera.png",
    "chelsea.png",
    "coffee.png",
    "coins.png",
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
_SKLEARN = ("china.jpg", "flower.jpg")


def sample_photos() -> list[Path]:
    """Photographs that ship inside the two packages; nothing is downloaded."""
    paths = []
    for package, folder, names in (("skimage", "data", _SKIMAGE), ("sklearn", "datasets/images", _SKLEARN)):
        spec = find_spec(package)
        if spec is None or spec.origin is None:
            raise SystemExit(f"{package} is not installed; it brings the demo's photographs: pip install -e .[dev]")
        paths += [Path(spec.origin).parent / folder / name for name in names]
    return paths


def build_archive(folder: Path) -> None:
    """Write the archive: each photograph as `originals/NAME.jpg`, recompressed as `recompressed/`, at 60 % as `rescaled/`."""
    for kind in ("originals", "recompressed", "rescaled"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    for path in sample_photos():
        with Image.open(path) as opened:
            photo = opened.convert("RGB")
        photo.save(folder / "originals" / f"{path.stem}.jpg", quality=95)
        photo.save(folder / "recompressed" / f"{path.stem}.jpg", quality=60)
        photo.resize((photo.width * 6 // 10, photo.height * 6 // 10), Image.Resampling.LANCZOS).save(
            folder / "rescaled" / f"{path.stem}.jpg", quality=90
        )


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
