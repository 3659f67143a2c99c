"""`make demo`: checkpoint -> bundle -> collection -> searches, on this machine, without a server or a download.

By itself it uses the small model of `demo/world`, which was trained with this project's own commands (docs/small-world.md), and drawn
pictures that the model has never seen. With your own pictures (`--photos DIR`) and a bundle exported from a real checkpoint
(`--bundle DIR`) it shows the same steps on those.

Uses the command line exactly as a user would; each command is printed before it runs. Everything lands in demo/out.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parent))

from sample_photos import build_archive, build_queries

from mcip_qdrant.world.architecture import bundle_name, export_command
from mcip_qdrant.world.drawn import DrawnArchive

if TYPE_CHECKING:
    from mcip_qdrant import ImageCollection

HERE = Path(__file__).resolve().parent
OUT = HERE / "out"
PICTURES = {".jpg", ".jpeg", ".png", ".webp"}
FEWEST_RIGHT = 0.8  # of the drawn world's hits
SHOWN = 5


def command(*arguments: object) -> str:
    """Run `mcip-qdrant …` and return what it printed; stop the demo where it fails."""
    shown = " ".join(f'"{item}"' if " " in str(item) else str(item) for item in arguments)
    print(f"\n$ mcip-qdrant {shown}", flush=True)
    done = subprocess.run(
        [sys.executable, "-m", "mcip_qdrant", *map(str, arguments)], stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode not in {0, 3}:
        raise SystemExit(done.returncode)
    return done.stdout


def main() -> None:
    """Run the demo."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, help="ingest your own folder of pictures")
    parser.add_argument("--bundle", type=Path, help="use a bundle exported from a real checkpoint")
    parser.add_argument("--text", help="what to search for")
    options = parser.parse_args()

    OUT.mkdir(exist_ok=True)
    shutil.rmtree(OUT / "qdrant", ignore_errors=True)
    bundle = options.bundle or export_small_model()
    drawn = options.photos is None and options.bundle is None
    enough = drawn_world(bundle, options.text) if drawn else photographs(bundle, options)
    print(f"\ncontact sheets to look at: {OUT / 'text.png'} and {OUT / 'image.png'}")
    archive = options.photos or OUT / ("drawn" if drawn else "photos")
    print(f"in the browser:            {page_command(bundle, archive)}")
    if options.bundle is None:
        print(
            "The model was trained on drawn pictures like these (docs/small-world.md) and knows nothing else.\n"
            "For photographs, export a trained checkpoint (README) and run: make demo PHOTOS=DIR BUNDLE=DIR"
        )
    if not enough:
        raise SystemExit("too few searches found the right picture")


def export_small_model() -> Path:
    """Export the committed checkpoint once; later runs reuse the bundle."""
    bundle = OUT / bundle_name()
    if not (bundle / "manifest.json").exists():
        print(command(*export_command(bundle)), end="")
    return bundle


def page_command(bundle: Path, archive: Path) -> str:
    """The command that serves what the demo has ingested."""
    program = Path(sys.executable).parent / "mcip-qdrant"
    where = ("--bundle", bundle, "--qdrant", OUT / "qdrant", "--source-root", archive)
    return shlex.join(map(str, (program, "serve", *where)))


def ingest_and_search(bundle: Path, photos: Path, text: str, picture: Path) -> None:
    """The three commands that every user needs."""
    where = ("--bundle", bundle, "--qdrant", OUT / "qdrant")
    print(command("ingest", photos, *where, "--failures", OUT / "failures.jsonl"), end="")
    print(command("search", *where, "--text", text, "--limit", SHOWN, "--sheet", OUT / "text.png"), end="")
    print(command("search", *where, "--image", picture, "--limit", SHOWN, "--sheet", OUT / "image.png"), end="")


def drawn_world(bundle: Path, text: str | None) -> bool:
    """Search pictures of the small world, and say what is true of the hits."""
    archive = DrawnArchive(OUT / "drawn", OUT / "drawn-queries")
    archive.build()
    print(f"\n{len(archive)} drawn pictures: two views of each of {len(archive) // 2} instances")
    ingest_and_search(bundle, OUT / "drawn", text or archive.text_queries[0].text, archive.picture_queries[0])
    with opened(bundle) as collection:
        print("\n>>> collection.search(text=…, limit=5)   hits that show what the text says")
        right = wanted = 0
        for query in archive.text_queries:
            possible = min(SHOWN, archive.true_of(query.claim))
            hits = collection.search(text=query.text, limit=SHOWN)
            true = sum(archive.shows(hit.key, query.claim) for hit in hits)
            right, wanted = right + true, wanted + possible
            print(f"  {true} of {possible}   {query.text}")
        print(f"text searches: {right} of {wanted} hits are right")
        enough = right >= FEWEST_RIGHT * wanted
        found = pictures_find(collection, archive.picture_queries, archive.same_instance)
        return found >= FEWEST_RIGHT and enough


def photographs(bundle: Path, options: argparse.Namespace) -> bool:
    """Search the user's pictures, or sample photographs where only a bundle was given."""
    text = options.text or "a cat looking at the camera"
    if options.photos is not None:
        photos = options.photos.expanduser().resolve()
        queries = own_queries(photos)
    else:
        photos = OUT / "photos"
        build_archive(photos)
        queries = build_queries(OUT / "queries")
    ingest_and_search(bundle, photos, text, queries[0])
    with opened(bundle) as collection:
        return pictures_find(collection, queries, lambda key, query: Path(key).stem == query.stem) == 1


def own_queries(folder: Path) -> list[Path]:
    """Up to ten of the user's own pictures: each should find itself."""
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in PICTURES)
    if not found:
        raise SystemExit(f"no pictures ({', '.join(sorted(PICTURES))}) below {folder}")
    return found[:: max(1, len(found) // 10)][:10]


@contextmanager
def opened(bundle: Path) -> Iterator[ImageCollection]:
    """The collection as an application opens it."""
    from qdrant_client import QdrantClient

    from mcip_qdrant import ImageCollection, QueryEncoder

    client = QdrantClient(path=str(OUT / "qdrant"))
    try:
        yield ImageCollection(client, "images", QueryEncoder.open(bundle))
    finally:
        client.close()


def pictures_find(collection: ImageCollection, queries: list[Path], right: Callable[[str, Path], bool]) -> float:
    """Search with every query picture; returns the share, 0..1, that found the right picture first."""
    from mcip_qdrant import ImageError

    print("\n>>> collection.search(image=query, limit=1)")
    good = tried = 0
    for query in queries:
        try:
            hit = collection.search(image=query, limit=1)[0]
        except ImageError as exc:
            print(f"  {query.name:24} skipped: {exc}")
            continue
        tried += 1
        # A file of the archive may have an exact twin under another name.
        found = right(hit.key, query) or hit.score > 0.9999
        good += found
        print(f"  {query.name:24} -> {hit.key:40} {hit.score:.4f}  {'right' if found else 'WRONG'}")
    print(f"image searches with the right picture first: {good} of {tried}")
    return good / max(1, tried)


if __name__ == "__main__":
    main()
