"""An archive that was ingested once, for tests that only look at it."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cli_support import Done, run
from conftest import Exported
from photos import photo_paths, write_archive
from PIL import Image
from server_support import XSS_NAME, XSS_VALUE, Shown, serving


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The full-length chaos tests run on request only."""
    if os.environ.get("MCIP_CHAOS") != "1":
        for item in items:
            if item.get_closest_marker("chaos"):
                item.add_marker(pytest.mark.skip(reason="takes minutes; MCIP_CHAOS=1 pytest -m chaos runs it"))


@dataclass(frozen=True)
class Library:
    """A folder of photographs, the embedded collection that holds them, and what `ingest --json` said."""

    folder: Path
    qdrant: Path
    bundle: Path
    said: Done

    @property
    def where(self) -> tuple[object, ...]:
        """Flags that name it."""
        return ("--bundle", self.bundle, "--qdrant", self.qdrant)


@pytest.fixture(scope="session")
def library(clip: Exported, workshop: Path) -> Library:
    """43 photographs: 39 in the root, the same name in two folders, one turned by EXIF, one PNG with alpha. Look only."""
    home = workshop / "library"
    folder = home / "photos"
    names = write_archive(folder, 41)
    for name, year in zip(names[39:], ("2019", "2020"), strict=True):
        (folder / year / "deep").mkdir(parents=True)
        name.rename(folder / year / "deep" / "IMG_0001.jpg")
    upright = Image.open(photo_paths()[4]).convert("RGB").resize((120, 80))
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after turning clockwise: 80 wide, 120 high
    upright.save(folder / "turned.jpg", exif=exif)
    see_through = Image.open(photo_paths()[5]).convert("RGB").resize((70, 90))
    see_through.putalpha(Image.radial_gradient("L").resize((70, 90)))
    see_through.save(folder / "alpha.PNG")
    (folder / "notes.txt").write_text("no image\n")
    os.utime(folder / "alpha.PNG", ns=(0, 1_234_567_890_123_456_789))
    (home / "tags.csv").write_text(
        "path,year,tag\n2019/deep/IMG_0001.jpg,2019,007\nphoto-0000.jpg,,x\nnot-there.jpg,1,y\n"
    )
    said = run(
        "ingest",
        folder,
        "--bundle",
        clip.folder,
        "--qdrant",
        home / "qdrant",
        "--columns",
        home / "tags.csv",
        "--json",
        cwd=home,
    )
    return Library(folder, home / "qdrant", clip.folder, said)


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that other users may enter (pytest's own they may not)."""
    folder = Path(tempfile.mkdtemp()).resolve()
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def shown(clip: Exported, workshop: Path) -> Iterator[Shown]:
    """`serve` on 60 photographs with columns, a copy of one of them, and file names of the kind that attackers choose. Look only."""
    home = workshop / "shown"
    folder = home / "photos"
    names = write_archive(folder, 60)
    shutil.copy(names[7], folder / "copy-of-0007.jpg")
    names[8].rename(folder / XSS_NAME)
    (folder / "größe 100% & more").mkdir()
    names[9].rename(folder / "größe 100% & more" / "a #1?.jpg")
    rows = [
        f"{name.name},{2015 + index % 3},{('harbour', XSS_VALUE)[index % 2]}\n" for index, name in enumerate(names[10:])
    ]
    (home / "tags.csv").write_text("path,year,place\n" + "".join(rows))
    where = ("--bundle", clip.folder, "--qdrant", home / "qdrant")
    run("ingest", folder, *where, "--columns", home / "tags.csv", "--json", cwd=home)
    with serving(*where, "--source-root", folder, cwd=home) as served:
        yield Shown(folder, home, clip.folder, served)
