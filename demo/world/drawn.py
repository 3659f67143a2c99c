"""The demo's own archive: pictures of the small world that the committed model never saw, and what is true of them."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mcip_qdrant.world.archive import Picture, pictures
from mcip_qdrant.world.captions import Claim, Mention, holds
from mcip_qdrant.world.render import draw, jpeg, random_view
from mcip_qdrant.world.scenes import WORLD_SEED, WorldSize

_SIZE: Final = WorldSize(groups=80, scenes_per_group=2, views=3)
_PIXELS: Final = 192
_QUERY_EVERY: Final = 8
_CAPTION_EVERY: Final = 60


@dataclass(frozen=True, slots=True)
class TextQuery:
    """A text, and what a picture has to show for it."""

    text: str
    claim: Claim


class DrawnArchive:
    """320 pictures: two views of each of 160 instances, which come in pairs that share every caption.

    Args:
        folder: where the archive goes.
        queries: where a third view of some instances goes, to search with.
    """

    def __init__(self, folder: Path, queries: Path) -> None:
        self._folder = folder
        self._queries = queries
        made = pictures("test", seed=WORLD_SEED, size=_SIZE)
        self._archive = {self._name(picture): picture for picture in made if picture.view < 2}
        self._asked = [picture for picture in made if picture.view == 2][::_QUERY_EVERY]

    def build(self) -> None:
        """Draw what is not there yet."""
        for name, picture in self._archive.items():
            _draw(picture, self._folder / name)
        for picture in self._asked:
            _draw(picture, self._queries / self._name(picture))

    def write_columns(self, table: Path, *, below: str) -> None:
        """Write a CSV for `ingest --columns`: what the large thing of each picture is. Paths begin with the folder `below`."""
        with table.open("w", newline="", encoding="utf-8") as stream:
            rows = csv.writer(stream)
            rows.writerow(("path", "colour", "shape", "pattern"))
            for name, picture in self._archive.items():
                large = picture.scene.group.large
                rows.writerow((f"{below}/{name}", large.colour, large.shape, large.pattern))

    def __len__(self) -> int:
        return len(self._archive)

    @property
    def picture_queries(self) -> list[Path]:
        """A view of 20 instances that is not in the archive."""
        return [self._queries / self._name(picture) for picture in self._asked]

    @property
    def text_queries(self) -> list[TextQuery]:
        """Short texts, and full captions of some groups."""
        short = [
            TextQuery("a red circle", Claim(Mention("red", "circle"))),
            TextQuery("a blue star", Claim(Mention("blue", "star"))),
            TextQuery("a green square", Claim(Mention("green", "square"))),
            TextQuery("a striped red circle", Claim(Mention("red", "circle", "striped"))),
        ]
        full = [picture.captions[0] for picture in list(self._archive.values())[::_CAPTION_EVERY]]
        return short + [TextQuery(caption.text, caption.claim) for caption in full]

    def shows(self, key: str, claim: Claim) -> bool:
        """Whether a claim is true of the picture behind an image key."""
        return holds(claim, self._archive[Path(key).name].scene.group)

    def true_of(self, claim: Claim) -> int:
        """How many pictures of the archive a claim is true of."""
        return sum(holds(claim, picture.scene.group) for picture in self._archive.values())

    def same_instance(self, key: str, query: Path) -> bool:
        """Whether the picture behind an image key is a view of the query's instance."""
        return Path(key).name.split("-view-")[0] == query.name.split("-view-")[0]

    @staticmethod
    def _name(picture: Picture) -> str:
        number = picture.scene.number
        return f"scene-{number // 1000 % 1000:03d}{'abc'[number % 1000]}-view-{picture.view}.jpg"


def _draw(picture: Picture, path: Path) -> None:
    if path.is_file():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    view = random_view(picture.scene, picture.view, seed=WORLD_SEED)
    # A picture that was cut off by Ctrl-C would not be drawn again.
    unfinished = path.with_name(f".{path.name}.partial")
    unfinished.write_bytes(jpeg(draw(picture.scene, view, size=_PIXELS), view))
    unfinished.replace(path)
