"""Import and first text vector in a cold process: ours against open_clip with torch, from the same weights.

Each measurement is the wall time of a whole `python -c …` process, from start to exit, that turns one text into its
vector: `QueryEncoder.open(bundle).text(…)`, and `open_clip.create_model(…, pretrained=checkpoint)` with its tokenizer.
Files are in the page cache for both (each reads its own once before). Both use their default number of threads.

Beside it: what a process costs that only loads the graph into bare ONNX Runtime, with numpy, and runs it on ready ids.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from _harness import Row, Script, report, require_same, say
from _models import Model, vit_b_32

TEXT = "a red car in the snow"

OURS = """
import sys
from mcip_qdrant import QueryEncoder
vector = QueryEncoder.open(sys.argv[1], device="cpu").text(sys.argv[3])
vector.tofile(sys.argv[4])
"""
OPEN_CLIP = """
import sys
import open_clip, torch
model = open_clip.create_model("ViT-B-32", pretrained=sys.argv[2])
model.eval()
tokens = open_clip.get_tokenizer("ViT-B-32")([sys.argv[3]])
with torch.inference_mode():
    vector = model.encode_text(tokens, normalize=True)[0].numpy()
vector.tofile(sys.argv[4])
"""
BARE = """
import sys
import numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1] + "/textual.onnx", providers=["CPUExecutionProvider"])
ids = numpy.fromfile(sys.argv[2], dtype=numpy.int64).reshape(1, -1)
session.run(None, {session.get_inputs()[0].name: ids})[0][0].tofile(sys.argv[4])
"""


def main() -> None:
    """Measure and print."""
    options = Script(__doc__ or "", rounds=7).parse()
    model = vit_b_32(options.work)
    rows = measured(model, options.rounds)
    report(rows, as_json=options.json)


def measured(model: Model, rounds: int, pythons: Mapping[str, str | Path] | None = None) -> list[Row]:
    """Rounds of one process each, in turn. `pythons` names another interpreter for `ours` (and `bare`) or `open_clip`."""
    chosen = {"ours": sys.executable, "open_clip": sys.executable, **(pythons or {})}
    from mcip_qdrant.bundle import Bundle

    with tempfile.TemporaryDirectory() as folder:
        ids, out = Path(folder) / "ids", Path(folder) / "vector"
        Bundle.open(model.bundle).tokenizer().encode([TEXT]).ids.tofile(ids)
        programs = {"ours": (OURS, model.checkpoint), "open_clip": (OPEN_CLIP, model.checkpoint), "bare": (BARE, ids)}
        spent: dict[str, list[float]] = {name: [] for name in programs}
        for number in range(rounds + 1):
            vectors = {}
            for name in programs if number % 2 else reversed(programs):
                program, second = programs[name]
                start = time.perf_counter()
                python = chosen["open_clip" if name == "open_clip" else "ours"]
                # From a folder of its own: a checkout in the current one would shadow what is installed.
                command = [python, "-W", "ignore", "-c", program, model.bundle, second, TEXT, out]
                subprocess.run(command, check=True, cwd=folder)
                if number:
                    spent[name].append(time.perf_counter() - start)
                vectors[name] = np.fromfile(out, dtype=np.float32)[None]
            require_same({name: vectors[name] for name in programs})
            say(f"round {number} of {rounds}" if number else "warm-up done")
    share = [bare / our for our, bare in zip(spent["ours"], spent["bare"], strict=True)]
    note = (
        f"bare ONNX Runtime in the same form (numpy, graph, ready ids) takes {statistics.median(share):.2f} of our time"
    )
    return [
        Row(
            "import + first text vector, cold process, ViT-B/32",
            "open_clip + torch, same weights",
            5,
            [their / our for our, their in zip(spent["ours"], spent["open_clip"], strict=True)],
            note,
        )
    ]


if __name__ == "__main__":
    main()
