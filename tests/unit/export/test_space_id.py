"""`space_id` names a vector space: the same for every form of the same weights, another for everything that matters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from mcip_qdrant.export.space_id import space_id
from mcip_qdrant.manifest import Preprocess, TokenizerConfig

TENSORS = {
    "visual.w": torch.arange(6.0).reshape(2, 3),
    "text_projection": torch.ones(3),
    "logit_scale": torch.tensor(4.6),
}
PREPROCESS = Preprocess(size=(64, 64), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
TOKENIZER = TokenizerConfig(
    context_length=77, cleaning="lower", pad_id=0, vocab_size=100, digest="d" * 64, sha256="f" * 64
)
ARCHITECTURE = {"embed_dim": 3, "activation": "gelu"}


def identity(
    tensors: Any = TENSORS,
    architecture: Any = ARCHITECTURE,
    preprocess: Preprocess = PREPROCESS,
    tokenizer: TokenizerConfig = TOKENIZER,
) -> str:
    return space_id(tensors, architecture, preprocess, tokenizer)


def test_value_is_pinned() -> None:
    """Collections in the field carry these ids: a change of the recipe must be a decision, not an accident."""
    import hashlib
    import json
    from dataclasses import asdict

    # Worked out from the recipe in docs/bundle-format.md, not with the function under test.
    digest = hashlib.sha256()
    digest.update(b"text_projection\0float32\0[3]\0" + bytes.fromhex("0000803f") * 3)
    digest.update(b"visual.w\0float32\0[2, 3]\0")
    for value in ("00000000", "0000803f", "00000040", "00004040", "00008040", "0000a040"):
        digest.update(bytes.fromhex(value))
    rest = {"architecture": ARCHITECTURE, "preprocess": asdict(PREPROCESS), "tokenizer": "d" * 64}
    digest.update(json.dumps(rest, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode())
    assert identity() == digest.hexdigest()


@pytest.mark.parametrize(
    "same",
    [
        lambda: identity(dict(reversed(TENSORS.items()))),
        lambda: identity({**TENSORS, "logit_scale": torch.tensor(1.0), "logit_bias": torch.tensor(-10.0)}),
        lambda: identity(
            {
                **TENSORS,
                "visual.w": torch.arange(6.0).reshape(3, 2).t().contiguous().t().reshape(2, 3) * 0
                + TENSORS["visual.w"],
            }
        ),
        lambda: identity(tokenizer=replace(TOKENIZER, sha256="0" * 64)),
    ],
    ids=["order", "logit scale and bias", "memory layout", "tokenizer file's own bytes"],
)
def test_what_does_not_matter(same: Callable[[], str]) -> None:
    assert same() == identity()


@pytest.mark.parametrize(
    "different",
    [
        lambda: identity({**TENSORS, "visual.w": TENSORS["visual.w"] + 1e-6}),
        lambda: identity({**TENSORS, "visual.w": TENSORS["visual.w"].reshape(3, 2)}),
        lambda: identity({**TENSORS, "visual.w": TENSORS["visual.w"].double()}),
        lambda: identity({**TENSORS, "visual.v": torch.zeros(1)}),
        lambda: identity(architecture={**ARCHITECTURE, "activation": "quick_gelu"}),
        lambda: identity(preprocess=replace(PREPROCESS, resize_mode="squash")),
        lambda: identity(tokenizer=replace(TOKENIZER, digest="e" * 64)),
    ],
    ids=["value", "shape", "dtype", "tensor", "activation", "resize mode", "tokenizer"],
)
def test_what_matters(different: Callable[[], str]) -> None:
    assert different() != identity()
