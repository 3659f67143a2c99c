"""What the query side costs to install and to start, against the usual road (open_clip with torch), each in a clean environment.

Builds a wheel of this checkout and two virtual environments from the package index: one with `mcip-qdrant[cpu]`, one with
`open_clip_torch` and `torch` as pip gives them. Measured are

* installed size: the files of the package asked for and of everything it requires, byte code included;
* import: wall time of a process that only imports, less that of one that does nothing;
* import + first text vector in a cold process, by `query_cold.py`, with each side in its own environment.

Rounds are interleaved. `--write` puts the table into docs/querying.md. The second environment is some 5 GB, because torch from the
index brings CUDA; `--peer-python` takes an interpreter that has open_clip and torch already, of which the same files are counted.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any

from _harness import HEADER, Fact, Row, Script, report, say
from _models import vit_b_32
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from query_cold import measured
from run_all import machine, write_page

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "querying.md"
MARKERS = ("<!-- measured: begin (benchmarks/query_install.py --write) -->", "<!-- measured: end -->")
SOURCES = ("mcip_qdrant/", "export/", "workers/", "demo/world/", "pyproject.toml", "README.md", "LICENSE")
OURS, PEER = ("mcip-qdrant[cpu]",), ("open_clip_torch", "torch")
ABSENT = ("torch", "open_clip", "celery", "transformers", "onnx")
IMPORTS = {"ours": "from mcip_qdrant import ImageCollection, QueryEncoder", "open_clip": "import open_clip, torch"}


@dataclass(frozen=True, slots=True)
class Environment:
    """An interpreter, and the packages that somebody asked for."""

    python: Path
    asked: tuple[str, ...]

    def packages(self) -> dict[str, Distribution]:
        """What was asked for and everything it requires, by name."""
        found = {
            canonicalize_name(one.metadata["Name"]): one
            for one in reversed(list(distributions(path=self._sys_path())))
            if one.metadata["Name"]
        }
        closure: dict[str, Distribution] = {}
        waiting, seen = [Requirement(text) for text in self.asked], set()
        while waiting:
            wanted = waiting.pop()
            name = canonicalize_name(wanted.name)
            extras = frozenset(wanted.extras) | {""}
            if name not in found or (name, extras) in seen:
                continue
            seen.add((name, extras))
            closure[name] = found[name]
            for needed in map(Requirement, found[name].requires or ()):
                if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in extras):
                    waiting.append(needed)
        return closure

    def _sys_path(self) -> list[str]:
        done = subprocess.run(
            [self.python, "-c", "import sys; print('\\n'.join(p for p in sys.path if p.endswith('-packages')))"],
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.split()


def installed_bytes(packages: Sequence[Distribution]) -> int:
    """Size of the files that installing them has put on the disk."""
    files = {Path(str(one.locate_file(path))) for one in packages for path in one.files or ()}
    return sum(path.stat().st_size for path in files if path.is_file())


def main() -> None:
    """Build, measure, print."""
    script = Script(__doc__ or "", rounds=7)
    script.parser.add_argument(
        "--peer-python", type=Path, help="an interpreter with open_clip and torch, instead of a clean one"
    )
    script.parser.add_argument("--write", action="store_true", help="put the table into docs/querying.md")
    options = script.parse()
    ours = Environment(clean(options.work / "install-ours", f"{wheel(options.work)}[cpu]"), OURS)
    peer = Environment(options.peer_python or clean(options.work / "install-peer", *PEER), PEER)
    require_absent(ours)
    rows = [size_row(ours, peer), import_row(ours, peer, options.rounds)]
    rows += measured(vit_b_32(options.work), options.rounds, {"ours": ours.python, "open_clip": peer.python})
    report(rows, as_json=options.json)
    if options.write:
        table = "\n".join([machine(), "", HEADER, *(row.markdown() for row in rows)])
        write_page(table, PAGE, MARKERS)
        say(f"written: {PAGE.relative_to(ROOT)}")


def wheel(work: Path) -> Path:
    """A wheel of the checkout as it is, built from a copy so that the checkout stays as it is."""
    copy, dist = work / "wheel-copy", work / "wheel"
    for folder in (copy, dist):
        shutil.rmtree(folder, ignore_errors=True)
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in listed.stdout.splitlines():
        if name.startswith(SOURCES) and (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
    run([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", dist, copy])
    return next(dist.glob("*.whl"))


def clean(folder: Path, *packages: str) -> Path:
    """A new environment with these packages and what they require; its interpreter."""
    say(f"installing {', '.join(Path(one).name for one in packages)} into a clean environment")
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages])
    return python


def run(command: Sequence[Any]) -> None:
    """Run a command that has to work; what it prints is no result."""
    subprocess.run(command, check=True, stdout=sys.stderr, env=environment())


def environment() -> dict[str, str]:
    """Without a developer's own Python settings, which would lead into the checkout."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "MCIP_"))}


def require_absent(ours: Environment) -> None:
    """The light install is light, or there is nothing to measure."""
    code = f"import importlib.util; print(*[n for n in {ABSENT!r} if importlib.util.find_spec(n)])"
    done = subprocess.run(
        [ours.python, "-c", code], capture_output=True, text=True, check=True, cwd=tempfile.gettempdir()
    )
    if done.stdout.strip():
        raise SystemExit(f"mcip-qdrant[cpu] brings {done.stdout.strip()}")


def size_row(ours: Environment, peer: Environment) -> Fact:
    """Installed size."""
    light, heavy = (env.packages() for env in (ours, peer))
    small, large = (installed_bytes(list(found.values())) for found in (light, heavy))
    return Fact(
        "installed size of `mcip-qdrant[cpu]`",
        "open_clip_torch + torch from the package index",
        "–",
        f"**{small / 1e6:,.0f} MB** in {len(light)} packages against {large / 1e6:,.0f} MB in {len(heavy)}: 1/{large / small:.0f}",
        None,
        "torch from the index brings CUDA's libraries",
    )


def import_row(ours: Environment, peer: Environment, rounds: int) -> Row:
    """Import alone, less the start of the interpreter."""
    pythons = {"ours": ours.python, "open_clip": peer.python}
    spent: dict[str, list[float]] = {name: [] for name in pythons}
    for number in range(rounds + 1):
        for name in pythons if number % 2 else reversed(pythons):
            seconds = process_s(pythons[name], IMPORTS[name]) - process_s(pythons[name], "pass")
            if number:
                spent[name].append(seconds)
    medians = {name: statistics.median(values) for name, values in spent.items()}
    return Row(
        "`from mcip_qdrant import ImageCollection, QueryEncoder`",
        "`import open_clip, torch`",
        None,
        [their / our for our, their in zip(spent["ours"], spent["open_clip"], strict=True)],
        f"{medians['ours']:.2f} s against {medians['open_clip']:.2f} s; qdrant-client and ONNX Runtime load at first use",
    )


def process_s(python: Path, code: str) -> float:
    """Seconds that a process takes, from start to exit."""
    start = time.perf_counter()
    subprocess.run([python, "-W", "ignore", "-c", code], check=True, cwd=tempfile.gettempdir(), env=environment())
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
