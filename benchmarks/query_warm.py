"""Warm text encoding, one text at a time and 64 at once, against bare ONNX Runtime on ready token ids.

Ours is `QueryEncoder.text(…)` and `.texts([…])`: cleaning, tokenizing, checks and the graph. Bare is `session.run` of the
same graph file with the same number of threads and the same handling of subnormals on ids that are ready. Texts are of
4 to 40 words. Both run in processes of their own, in turn.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from _harness import Peer, Row, Script, interleave, ratios, report, same_vectors, serve
from _models import vit_b_32

BURST, BURSTS = 64, 2
_WORDS = (
    "a the red blue old small car house mountain snow river photo of dog cat two people walking in under bright sky "
    "Paris 1987 black-and-white close-up café naïve sunset bicycle's market, harbour; portrait (detail) & forest"
)


def queries() -> list[str]:
    """The same texts in every process."""
    choose, words = random.Random(0), _WORDS.split()
    return [" ".join(choose.choices(words, k=choose.randint(4, 40))) for _ in range(BURST)]


def ours(config: Mapping[str, Any]) -> Callable[[], tuple[dict[str, Any], Any]]:
    """Our query encoder."""
    from mcip_qdrant import QueryEncoder

    encoder, texts = QueryEncoder.open(config["bundle"], device="cpu"), queries()
    return _rounds(lambda number: encoder.text(texts[number]), lambda: encoder.texts(texts))


def bare(config: Mapping[str, Any]) -> Callable[[], tuple[dict[str, Any], Any]]:
    """ONNX Runtime alone."""
    import onnxruntime

    from mcip_qdrant.bundle import Bundle
    from mcip_qdrant.cpus import available_cpus

    bundle = Bundle.open(config["bundle"])
    ids = bundle.tokenizer().encode(queries()).ids
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = available_cpus()
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    graph = bundle.directory / bundle.graph("textual", "fp32").file
    session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return _rounds(
        lambda number: session.run(None, {name: ids[number : number + 1]})[0], lambda: session.run(None, {name: ids})[0]
    )


def _rounds(one: Callable[[int], Any], burst: Callable[[], Any]) -> Callable[[], tuple[dict[str, Any], Any]]:
    def work() -> tuple[dict[str, Any], Any]:
        start = time.perf_counter()
        singles = [np.asarray(one(number)).reshape(-1) for number in range(BURST)]
        middle = time.perf_counter()
        for _ in range(BURSTS):
            together = burst()
        end = time.perf_counter()
        return {"one": middle - start, "burst": end - middle}, np.concatenate([singles, together])

    return work


def main() -> None:
    """Measure and print."""
    options = Script(__doc__ or "", rounds=9).parse()
    config = {"bundle": str(vit_b_32(options.work).bundle)}
    results = interleave(
        [Peer(name, "query_warm.py", config) for name in ("ours", "bare")], options.rounds, same_vectors
    )
    against = "bare ONNX Runtime on ready ids"
    milliseconds = [1000 * (our["one"] - bare["one"]) / BURST for our, bare in zip(*results.values(), strict=True)]
    note = f"the difference is {sorted(milliseconds)[len(milliseconds) // 2]:.2f} ms a text"
    rows = [
        Row("text query, warm, one at a time, ViT-B/32", against, 0.95, ratios(results, "ours", "bare", "one"), note),
        Row(f"{BURST} text queries at once, warm", against, 0.95, ratios(results, "ours", "bare", "burst")),
    ]
    report(rows, as_json=options.json)


if __name__ == "__main__":
    import sys

    if sys.argv[1:2] and sys.argv[1] in {"ours", "bare"}:
        serve({"ours": ours, "bare": bare})
    else:
        main()
