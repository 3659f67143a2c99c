"""The demo's photographs: real ones from scikit-image and scikit-learn, with recompressed and rescaled copies."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from PIL import Image

from mcip_qdrant.errors import MissingExtraError

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
    """Photographs that ship inside the two packages; nothing is downloaded.

    Raises:
        MissingExtraError: one of the packages is not installed.
    """
    paths = []
    for package, folder, names in (("skimage", "data", _SKIMAGE), ("sklearn", "datasets/images", _SKLEARN)):
        spec = find_spec(package)
        if spec is None or spec.origin is None:
            raise MissingExtraError(
                f"{package} is not installed; it brings sample photographs: pip install scikit-image scikit-learn"
            )
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
