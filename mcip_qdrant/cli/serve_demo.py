"""What `mcip-qdrant serve --demo` serves: the pictures and the model of `make demo`, in the user's cache folder."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import click

from mcip_qdrant.errors import McipError, MissingExtraError
from mcip_qdrant.extras import needs_extra


@dataclass(frozen=True, slots=True)
class DemoArchive:
    """Folders of the demo: bundle, embedded Qdrant, pictures."""

    bundle: Path
    qdrant: Path
    pictures: Path


def demo_archive(bundle: Path | None) -> DemoArchive:
    """Make what is missing of the demo, and say so on stderr.

    Args:
        bundle: a model of the user's own, which also gets photographs where scikit-image and scikit-learn are installed. None for the
            small model that knows drawn pictures, whose export needs the extra `export` the first time.

    Raises:
        MissingExtraError: no bundle was given, and none can be made here.
        McipError: a step failed; it has said why.
    """
    from mcip_qdrant.bundle import Bundle
    from mcip_qdrant.world.drawn import DrawnArchive

    with needs_extra("serve", "serve --demo"):
        from platformdirs import user_cache_path
    home = user_cache_path("mcip-qdrant") / "demo"
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    pictures = home / ("drawn" if bundle is None else "pictures")
    archive = DrawnArchive(pictures / "scenes", home / "queries")
    archive.build()
    columns = home / f"{pictures.name}.csv"
    archive.write_columns(columns, below="scenes")
    if bundle is None:
        bundle = _small_bundle(home)
    else:
        _add_photographs(pictures)
    qdrant = home / f"qdrant-{Bundle.open(bundle).space_id[:12]}"
    click.echo(f"demo: everything lies in {home}; delete that folder when you are done", err=True)
    click.echo(f"demo: pictures to drop onto the page: {home / 'queries'}", err=True)
    where = ("--bundle", bundle, "--qdrant", qdrant)
    _command("ingest", pictures, *where, "--columns", columns, "--failures", home / "failures.jsonl")
    return DemoArchive(bundle, qdrant, pictures)


def _small_bundle(home: Path) -> Path:
    from mcip_qdrant.world.architecture import bundle_name, export_command

    bundle = home / bundle_name()
    click.echo("demo: the model was trained on drawn pictures and knows nothing else; try: a red circle", err=True)
    if (bundle / "manifest.json").exists():
        return bundle
    if find_spec("torch") is None or find_spec("open_clip") is None:
        raise MissingExtraError(
            "serve --demo has to export its model once: add --bundle DIR of a model of your own, or "
            'pip install "mcip-qdrant[cpu,export,serve]"'
        )
    _command(*export_command(bundle))
    return bundle


def _add_photographs(folder: Path) -> None:
    from mcip_qdrant.server.sample_photos import build_archive

    if (folder / "originals").exists():
        return
    try:
        build_archive(folder)
    except MissingExtraError as exc:
        click.echo(f"demo: drawings only, no photographs ({exc})", err=True)


def _command(*arguments: object) -> None:
    """Run `mcip-qdrant …`, as a person would; a few pictures that failed do not matter here."""
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-m", "mcip_qdrant", *map(str, arguments)], stdout=sys.stderr, check=False
    )
    if done.returncode not in {0, 3}:
        raise McipError(f"the demo could not be made: mcip-qdrant {arguments[0]} failed (exit code {done.returncode})")
