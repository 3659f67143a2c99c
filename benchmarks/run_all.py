"""Run every benchmark of the way in that concerns one machine, and write the first table of docs/benchmarks.md.

Wants a machine that does nothing else: the load average before the start is printed into the page. The first run makes
models and photos in the work folder (2 minutes, 2 GB); a whole run takes about 20 minutes on two CPUs. The page is left
as it is where a benchmark fails or is void. Text outside the page's two markers is never touched.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from _harness import HEADER, Fact, Script, say

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent / "docs" / "benchmarks.md"
BEGIN, END = "<!-- measured: begin (benchmarks/run_all.py) -->", "<!-- measured: end -->"
SCRIPTS = ("ingest_small", "ingest_large", "int8", "corrupt", "killed")
# The page has them in its section on queries, query_install.py in docs/querying.md.
QUERIES = ("query_cold", "query_warm", "query_int8_recall")
PACKAGES = ("onnxruntime", "pillow", "numpy", "qdrant-client", "tokenizers", "fastembed", "open-clip-torch", "torch")


def main() -> None:
    """Run, print, write."""
    script = Script(__doc__ or "", rounds=0)
    script.parser.set_defaults(rounds=None)
    script.parser.add_argument("--photos", type=Path, help="camera-size JPEGs of your own: see ingest_large.py --help")
    script.parser.add_argument(
        "--only", nargs="+", choices=(*SCRIPTS, *QUERIES, "decode_preprocess"), help="run these and print"
    )
    options = script.parse()
    load = os.getloadavg()[0]
    if load > 0.3:
        say(f"WARNING: the load average is {load:.2f}; the figures will be those of a busy machine")
    wanted = options.only or ["decode_preprocess", *SCRIPTS]
    start = time.monotonic()
    lines = [line for name in wanted for line in rows_of(name, options)]
    minutes = (time.monotonic() - start) / 60
    table = "\n".join(
        [f"{machine()} Load average before the start {load:.2f}; {minutes:.0f} minutes.", "", HEADER, *lines]
    )
    if options.json:
        print(json.dumps(lines, ensure_ascii=False, indent=1))
    else:
        print(table)
    if not options.only:
        write_page(table)
        say(f"written: {PAGE.relative_to(HERE.parent)}")


def rows_of(name: str, options: Any) -> list[str]:
    """Markdown rows of one script, run in a process of its own."""
    say(f"== {name}")
    arguments = ["--json"]
    if name != "decode_preprocess":
        arguments += ["--work", str(options.work)]
        arguments += ["--rounds", str(options.rounds)] if options.rounds else []
    if name == "ingest_large" and options.photos is not None:
        arguments += ["--photos", str(options.photos)]
    done = subprocess.run([sys.executable, HERE / f"{name}.py", *arguments], stdout=subprocess.PIPE, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{name} ended with exit code {done.returncode}; docs/benchmarks.md is left as it was")
    result = json.loads(done.stdout)
    rows = decode_rows(result) if name == "decode_preprocess" else [row["markdown"] for row in result]
    say("\n".join(rows))
    return rows


def decode_rows(result: dict[str, Any]) -> list[str]:
    """`decode_preprocess.py` prints its own form."""
    rows = []
    for shape, row in result["exact_against_open_clip"].items():
        what, note = f"decode + preprocess one {shape} JPEG, one thread", "pixels equal bit for bit"
        measured = f"**{row['ratio']:.2f}** ({row['ratio_min']:.2f}–{row['ratio_max']:.2f})"
        rows.append(Fact(what, "open_clip's transform", "1.3", measured, row["ratio"] >= 1.3, note).markdown())
    if row := result.get("scaled_against_exact_12_megapixels"):
        what = "decode + preprocess one JPEG of 12 megapixels (upscaled photos), `scaled`"
        note = f"pixels move by {row['mean_difference']} of 255 levels on average"
        measured = f"**{row['ratio']:.2f}** ({row['ratio_min']:.2f}–{row['ratio_max']:.2f})"
        rows.append(Fact(what, "our `exact`", "–", measured, None, note).markdown())
    return rows


def machine() -> str:
    """The machine and the versions, without anything that names the host."""
    packages = []
    for name in PACKAGES:
        try:
            packages.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    sys.path.insert(0, str(HERE.parent))
    from mcip_qdrant.cpus import available_cpus

    day = datetime.now(UTC).date().isoformat()
    return (
        f"Measured {day} on {cpu_model()}, {available_cpus()} CPUs, {platform.system()} {platform.machine()}, "
        f"Python {platform.python_version()}, {', '.join(packages)}."
    )


def cpu_model() -> str:
    """Name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "an unnamed processor"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def write_page(table: str, page: Path = PAGE, markers: tuple[str, str] = (BEGIN, END)) -> None:
    """Replace what stands between the markers."""
    text = page.read_text(encoding="utf-8")
    begin, end = markers
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise SystemExit(f"{page.name} has lost its markers: {begin} … {end}")
    page.write_text(f"{before}{begin}\n{table}\n{end}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
