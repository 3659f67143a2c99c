"""`make demo`: checkpoint -> bundle -> collection -> searches, on this machine, without a server or a download.

Uses the command line exactly as a user would; each command is printed before it runs. Everything lands in demo/out.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from photos import build_archive, build_queries

HERE = Path(__file__).resolve().parent
OUT = HERE / "out"
MODEL, SEED = "ViT-B-32", 0


def command(*arguments: object) -> str:
    """Run `mcip-qdrant …` and return what it printed; stop the demo where it fails."""
    shown = " ".join(f'"{item}"' if " " in str(item) else str(item) for item in arguments)
    print(f"\n$ mcip-qdrant {shown}", flush=True)
    done = subprocess.run(
        [sys.executable, "-m", "mcip_qdrant", *map(str, arguments)], stdout=subprocess.PIPE, text=True, cwd=HERE.parent
    )
    if done.returncode not in {0, 3}:
        raise SystemExit(done.returncode)
    return done.stdout


def random_checkpoint(path: Path) -> None:
    """Save an open_clip model with seeded random weights, in the form in which real checkpoints come."""
    import logging

    import open_clip
    import torch

    logging.getLogger().setLevel(logging.ERROR)
    torch.manual_seed(SEED)
    torch.save(open_clip.create_model(MODEL, pretrained=None).state_dict(), path)


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
    if options.photos is not None:
        photos, queries = (
            options.photos,
            sorted(path for path in options.photos.rglob("*") if path.suffix.lower() in {".jpg", ".jpeg", ".png"})[:3],
        )
    else:
        photos, queries = OUT / "photos", build_queries(OUT / "queries")
        build_archive(photos)
    print(
        command("ingest", photos, "--bundle", bundle, "--qdrant", OUT / "qdrant", "--failures", OUT / "failures.jsonl"),
        end="",
    )

    where = ("--bundle", bundle, "--qdrant", OUT / "qdrant")
    print(
        command("search", *where, "--text", "a cat looking at the camera", "--limit", 5, "--sheet", OUT / "text.png"),
        end="",
    )
    right = 0
    for number, query in enumerate(queries):
        sheet = ("--sheet", OUT / "image.png") if number == 0 else ()
        hits = json.loads(command("search", *where, "--image", query, "--limit", 3, "--json", *sheet))
        first = hits[0]["payload"]["key"]
        found = Path(first).stem == query.stem
        right += found
        print(f"  {query.name} -> {first} ({hits[0]['score']:.4f}) {'right' if found else 'WRONG'}")
    print(f"\nimage searches with the right photo first: {right} of {len(queries)}")
    print(f"contact sheets: {OUT / 'text.png'}, {OUT / 'image.png'}")
    if options.bundle is None:
        print(
            f"\nThe model is {MODEL} with seeded random weights: pictures find their copies, but words mean nothing to it.\n"
            "For searches by words, export a trained checkpoint (README) and run: python demo/run.py --bundle DIR"
        )
    if right < len(queries):
        raise SystemExit(1)


def export_random_model() -> Path:
    """Export once; later runs reuse the bundle."""
    bundle, checkpoint = OUT / "bundle", OUT / "random.pth"
    if not (bundle / "manifest.json").exists():
        random_checkpoint(checkpoint)
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
