"""`space_id`: bundles that carry the same one produce comparable vectors, whatever their precision."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from mcip_qdrant.manifest import Preprocess, TokenizerConfig

# They scale scores, not directions; CoCa's decoder writes captions and takes no part in an embedding.
_NOT_IN_EMBEDDING = ("logit_scale", "logit_bias", "text_decoder.")


def space_id(
    tensors: Mapping[str, torch.Tensor],
    architecture: Mapping[str, Any],
    preprocess: Preprocess,
    tokenizer: TokenizerConfig,
) -> str:
    """SHA-256 (hex) over everything that decides what a vector means.

    The tensors of both towers sorted by name, each as name, dtype, shape and little-endian bytes; then canonical JSON of
    architecture, preprocessing and tokenizer digest. Tensors are those of the loaded float32 model, so that file format,
    nesting and wrapper prefixes do not matter.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        if name.startswith(_NOT_IN_EMBEDDING):
            continue
        array = tensors[name].detach().contiguous().numpy()
        little = array.astype(array.dtype.newbyteorder("<"), copy=False)
        digest.update(f"{name}\0{array.dtype.name}\0{list(array.shape)}\0".encode())
        digest.update(np.ascontiguousarray(little).reshape(-1).view(np.uint8).data)
    described = {"architecture": architecture, "preprocess": asdict(preprocess), "tokenizer": tokenizer.digest}
    digest.update(json.dumps(described, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode())
    return digest.hexdigest()
