"""`make demo`: checkpoint -> bundle -> collection -> searches, on this machine, without a server or a download.

Uses the command line exactly as a user would; each command is printed before it runs. Everything lands in demo/out.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from sample_photos import build_archive, build_queries

from mcip_qdrant.export.random_weights import random_checkpoint

HERE = Path(__file__).resolve().parent
OUT = HERE / "out"
MODEL = "ViT-B-32"
TEXT = "a cat looking at the camera"
PICTURES = {".jpg", ".jpeg", ".png", ".webp"}


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
    parser.add_argument(
        "--photos", type=Path, help="ingest your own folder of pictures instead of the sample photographs"
    )
    parser.add_argument("--bundle", type=Path, help="use a bundle exported from a real checkpoint")
    options = parser.parse_args()

    OUT.mkdir(exist_ok=True)
    shutil.rmtree(OUT / "qdrant", ignore_errors=True)
    bundle = options.bundle or export_random_model()
    photos = options.photos.expanduser().resolve() if options.photos is not None else OUT / "photos"
    if options.photos is None:
        build_archive(photos)
    queries = own_queries(photos) if options.photos is not None else build_queries(OUT / "queries")
    print(
        command("ingest", photos, "--bundle", bundle, "--qdrant", OUT / "qdrant", "--failures", OUT / "failures.jsonl"),
        end="",
    )
    where = ("--bundle", bundle, "--qdrant", OUT / "qdrant")
    print(command("search", *where, "--text", TEXT, "--limit", 5, "--sheet", OUT / "text.png"), end="")
    print(command("search", *where, "--image", queries[0], "--limit", 5, "--sheet", OUT / "image.png"), end="")
    wrong = search_from_python(bundle, queries)
    print(f"\ncontact sheets to look at: {OUT / 'text.png'} and {OUT / 'image.png'}")
    if options.bundle is None:
        print(
            f"The model is {MODEL} with seeded random weights: pictures find their copies, but words mean nothing to it.\n"
            "For searches by words, export a trained checkpoint (README) and run: python demo/run.py --bundle DIR"
        )
    if wrong:
        raise SystemExit(f"{wrong} image searches did not find the right photo first")


def own_queries(folder: Path) -> list[Path]:
    """Up to ten of the user's own pictures: each should find itself."""
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in PICTURES)
    if not found:
        raise SystemExit(f"no pictures ({', '.join(sorted(PICTURES))}) below {folder}")
    return found[:: max(1, len(found) // 10)][:10]


def search_from_python(bundle: Path, queries: list[Path]) -> int:
    """Search for every query picture as an application would; returns how many did not find their photo first."""
    from qdrant_client import QdrantClient

    from mcip_qdrant import ImageCollection, ImageError, QueryEncoder

    print("\n>>> ImageCollection(client, 'images', QueryEncoder.open(bundle)).search(image=query, limit=1)")
    client = QdrantClient(path=str(OUT / "qdrant"))
    collection = ImageCollection(client, "images", QueryEncoder.open(bundle))
    wrong = 0
    for query in queries:
        try:
            hit = collection.search(image=query, limit=1)[0]
        except ImageError as exc:
            print(f"  {query.name:24} skipped: {exc}")
            continue
        # A file of the archive may have an exact twin under another name.
        right = Path(hit.key).stem == query.stem or hit.score > 0.9999
        wrong += not right
        print(f"  {query.name:24} -> {hit.key:40} {hit.score:.4f}  {'right' if right else 'WRONG'}")
    client.close()
    print(f"image searches with the right photo first: {len(queries) - wrong} of {len(queries)}")
    return wrong


def export_random_model() -> Path:
    """Export once; later runs reuse the bundle."""
    bundle, checkpoint = OUT / "bundle", OUT / "random.pth"
    if not (bundle / "manifest.json").exists():
        random_checkpoint(MODEL, checkpoint)
        print(
            command(
                "export",
                "--model",
                MODEL,
                "--checkpoint",
                checkpoint,
                "--no-quick-gelu",
                "--precision",
                "fp32",
                "--output",
                bundle,
            ),
            end="",
        )
        checkpoint.unlink()
    return bundle


if __name__ == "__main__":
    main()
