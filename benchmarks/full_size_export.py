"""Export both released architectures at full size, from a checkpoint file, and print time, peak memory and parity.

The weights are seeded and random (the released files cannot be shipped), saved with torch.save like a real checkpoint. Each export
is the real command in a process of its own. Needs about 10 GB of memory and 15 GB of disk.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

PRESETS = ("mcip-vit-l-14-336", "mcip-vit-so400m-14-siglip-384")
MEMORY_LIMIT_GB = 10.0

_MEASURED = """
import resource, sys
from mcip_qdrant.cli.main import main
try:
    main()
finally:
    print("peak_kb", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)
"""

_CHECKPOINT = """
import logging, sys, open_clip, torch
logging.getLogger().setLevel(logging.ERROR)
torch.manual_seed(0)
torch.save(open_clip.create_model(sys.argv[1], pretrained=None).state_dict(), sys.argv[2])
"""


def main() -> int:
    """Run and print; exit code 1 where a bound is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()), help="where to write, 15 GB")
    parser.add_argument("--precision", default="fp32,fp16")
    parser.add_argument("presets", nargs="*", default=PRESETS)
    options = parser.parse_args()
    from tokenizer_texts import write_siglip_style

    from mcip_qdrant.export.presets import PRESETS as KNOWN

    failed = False
    print("| preset | seconds | peak memory | graph | size | lowest cosine to torch |\n|---|---|---|---|---|---|")
    for preset in options.presets:
        with tempfile.TemporaryDirectory(dir=options.work) as folder:
            work = Path(folder)
            subprocess.run(
                [sys.executable, "-W", "ignore", "-c", _CHECKPOINT, KNOWN[preset].model, work / "random.pth"],
                check=True,
            )
            tokenizer = []
            if "siglip" in preset:
                write_siglip_style(work / "tokenizer")
                tokenizer = ["--tokenizer", str(work / "tokenizer")]
            start = time.perf_counter()
            done = subprocess.run(
                [
                    *(
                        sys.executable,
                        "-c",
                        _MEASURED,
                        "export",
                        "--model",
                        preset,
                        "--checkpoint",
                        work / "random.pth",
                    ),
                    *("--output", work / "bundle", "--precision", options.precision, *tokenizer),
                ],
                capture_output=True,
                text=True,
                check=False,
            )
            seconds = time.perf_counter() - start
            if done.returncode != 0:
                print(done.stderr[-3000:], file=sys.stderr)
                return 1
            peak_gb = int(done.stderr.rsplit("peak_kb", 1)[1].split()[0]) / 1e6
            failed |= peak_gb > MEMORY_LIMIT_GB
            for graph in json.loads((work / "bundle" / "manifest.json").read_text())["graphs"]:
                size = sum(graph["bytes"].values()) / 1e6
                print(
                    f"| {preset} | {seconds:.0f} | {peak_gb:.1f} GB | {graph['file']} | {size:.0f} MB | {graph['parity']['minimum']:.7f} |",
                    flush=True,
                )
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
