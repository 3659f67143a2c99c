"""What `mcip-qdrant serve --demo` serves: sample pictures, ingested once into the user's cache folder."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import click

from mcip_qdrant.errors import McipError, MissingExtraError

_MODEL = "ViT-B-32"


@dataclass(frozen=True, slots=True)
class DemoArchive:
    """Folders of the demo: bundle, embedded Qdrant, pictures."""

    bundle: Path
    qdrant: Path
    pictures: Path


def demo_archive(bundle: Path | None) -> DemoArchive:
    """Make what is missing of the demo, and say so on stderr.

    Args:
        bundle: None for a model with random weights, which needs the extra `export` the first time.

    Raises:
        MissingExtraError: no bundle was given, and none can be made here.
        McipError: a step failed; it has said why.
    """
    from mcip_qdrant.bundle import Bundle
    from mcip_qdrant.server.sample_drawings import write_drawings
    from mcip_qdrant.server.sample_photos import build_archive

    home = _cache_home() / "mcip-qdrant" / "demo"
    pictures, columns = home / "pictures", home / "columns.csv"
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    if bundle is None:
        bundle = _random_bundle(home)
    if not columns.exists():
        try:
            build_archive(pictures)
        except MissingExtraError as exc:
            click.echo(f"demo: drawings only, no photographs ({exc})", err=True)
        write_drawings(pictures, columns)
    qdrant = home / f"qdrant-{Bundle.open(bundle).space_id[:12]}"
    click.echo(f"demo: everything lies in {home}; delete that folder when you are done", err=True)
    _command(
        "ingest",
        pictures,
        "--bundle",
        bundle,
        "--qdrant",
        qdrant,
        "--columns",
        columns,
        "--failures",
        home / "failures.jsonl",
    )
    return DemoArchive(bundle, qdrant, pictures)


def _cache_home() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def _random_bundle(home: Path) -> Path:
    bundle, checkpoint = home / "bundle", home / "random.pth"
    click.echo(
        "demo: a model with random weights. Pictures find their copies, words mean nothing to it; "
        "for searches by words add --bundle DIR of a trained model",
        err=True,
    )
    if (bundle / "manifest.json").exists():
        return bundle
    if find_spec("torch") is None or find_spec("open_clip") is None:
        raise MissingExtraError(
            "serve --demo needs a model: add --bundle DIR, or let it make one with random weights: "
            'pip install "mcip-qdrant[cpu,export,serve]"'
        )
    from mcip_qdrant.export.random_weights import random_checkpoint

    random_checkpoint(_MODEL, checkpoint)
    try:
        _command(
            *("export", "--model", _MODEL, "--checkpoint", checkpoint, "--no-quick-gelu"),
            *("--precision", "fp32", "--output", bundle),
        )
    finally:
        checkpoint.unlink()
    return bundle


def _command(*arguments: object) -> None:
    """Run `mcip-qdrant …`, as a person would; a few pictures that failed do not matter here."""
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-m", "mcip_qdrant", *map(str, arguments)], stdout=sys.stderr, check=False
    )
    if done.returncode not in {0, 3}:
        raise McipError(f"the demo could not be made: mcip-qdrant {arguments[0]} failed (exit code {done.returncode})")
