"""What users install: a wheel built from a copy, with only `[cpu]`, in a clean environment, run from outside the checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = ("export", "verify", "inspect", "ingest", "search", "serve", "adopt", "eval")

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Install the wheel; returns a function that runs the environment's Python from an empty folder."""
    work = tmp_path_factory.mktemp("wheel")
    tracked = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in tracked.stdout.splitlines():
        if (
            name.startswith(
                ("mcip_qdrant/", "export/", "workers/", "demo/world/", "pyproject.toml", "README.md", "LICENSE")
            )
            and (ROOT / name).is_file()
        ):
            (work / "copy" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, work / "copy" / name)
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--outdir", work / "dist", work / "copy"],
        check=True,
        capture_output=True,
    )
    wheel = next((work / "dist").glob("*.whl"))
    venv.create(work / "venv", with_pip=True)
    python = work / "venv" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", f"{wheel}[cpu]"], check=True, capture_output=True)
    (work / "elsewhere").mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "MCIP_"))}

    def run(*arguments: object, check: bool = True) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [python, *map(str, arguments)],
            cwd=work / "elsewhere",
            env=environment,
            capture_output=True,
            text=True,
            check=check,
        )

    return run


def test_nothing_heavy_and_no_stray_top_level_module(installed: Run) -> None:
    code = "import importlib.util as u; print([n for n in %r if u.find_spec(n)])"
    absent = (
        "torch",
        "open_clip",
        "transformers",
        "celery",
        "redis",
        "onnx",
        "export",
        "workers",
        "world",
        "tests",
        "demo",
        "benchmarks",
    )
    assert installed("-c", code % (absent,)).stdout.strip() == "[]"
    present = ("mcip_qdrant", "mcip_qdrant.export", "mcip_qdrant.workers", "mcip_qdrant.world", "onnxruntime")
    assert installed("-c", code % (present,)).stdout.strip() == str(list(present))
    model = "from mcip_qdrant.world.architecture import FOLDER, WEIGHTS; print(FOLDER.is_dir(), WEIGHTS.is_file())"
    assert installed("-c", model).stdout.split() == ["True", "True"]
    assert (
        installed(
            "-c",
            "import mcip_qdrant, pathlib; print((pathlib.Path(mcip_qdrant.__file__).parent / 'py.typed').exists())",
        ).stdout.strip()
        == "True"
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_works(installed: Run, command: str) -> None:
    shown = installed("-m", "mcip_qdrant", command, "--help").stdout
    assert f"mcip-qdrant {command}" in shown
    assert "--help" in shown


def test_the_group_lists_every_command(installed: Run) -> None:
    shown = installed("-m", "mcip_qdrant", "--help").stdout
    assert all(f"  {command} " in shown for command in COMMANDS)


def test_a_missing_extra_is_named(installed: Run) -> None:
    done = installed(
        "-m", "mcip_qdrant", "export", "--model", "ViT-B-32", "--checkpoint", "x", "--output", "y", check=False
    )
    assert done.returncode == 4
    assert 'pip install "mcip-qdrant[cpu,export]"' in done.stderr
    assert "Traceback" not in done.stderr


def test_serve_names_its_extra_and_brings_its_page(installed: Run, tmp_path: Path) -> None:
    done = installed("-m", "mcip_qdrant", "serve", "--bundle", tmp_path, check=False)
    assert done.returncode == 4
    assert 'pip install "mcip-qdrant[serve]"' in done.stderr
    code = "from importlib.resources import files; print(*(f.name for f in files('mcip_qdrant.server').joinpath('static').iterdir()))"
    there = {path.name for path in (ROOT / "mcip_qdrant" / "server" / "static").iterdir()}
    assert set(installed("-c", code).stdout.split()) == there


def test_a_bundle_works_there(installed: Run, clip: object, tmp_path: Path) -> None:
    """Ingest and search with the light install alone."""
    from photos import write_archive

    write_archive(tmp_path / "photos", 6)
    where = ("--bundle", clip.folder, "--qdrant", tmp_path / "qdrant")  # type: ignore[attr-defined]
    done = installed("-m", "mcip_qdrant", "ingest", tmp_path / "photos", *where, "--failures", tmp_path / "f.jsonl")
    assert done.stdout.startswith("6 embedded")
    found = installed(
        "-m", "mcip_qdrant", "search", *where, "--image", tmp_path / "photos" / "photo-0003.jpg", "--limit", 1
    )
    assert "photo-0003.jpg" in found.stdout


def test_evaluation_works_there_and_names_what_a_page_needs(installed: Run, clip: object, tmp_path: Path) -> None:
    from evaluation_support import write_classes

    data = write_classes(tmp_path / "classes", 2, 2)
    command = ("-m", "mcip_qdrant", "eval", "classes", data, "--bundle", clip.folder, "--cache", tmp_path / "cache")  # type: ignore[attr-defined]
    assert "mAP" in installed(*command).stdout
    done = installed(*command, "--html", tmp_path / "page.html", check=False)
    assert done.returncode == 4
    assert 'pip install "mcip-qdrant[eval]"' in done.stderr
    template = "import mcip_qdrant, pathlib; print(*pathlib.Path(mcip_qdrant.__file__).parent.glob('evaluation/*.j2'))"
    assert "page.html.j2" in installed("-c", template).stdout
