"""Small open_clip models with seeded random weights, in the form that users have them: a checkpoint file and a config folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

CLIP_PREPROCESS = {
    "mean": [0.48145466, 0.4578275, 0.40821073],
    "std": [0.26862954, 0.26130258, 0.27577711],
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}
SIGLIP_PREPROCESS = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash"}

TINY_CLIP: dict[str, Any] = {
    "embed_dim": 32,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 64, "layers": 2, "width": 64, "head_width": 32, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
}
TINY_RESNET: dict[str, Any] = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 1},
}
TINY_SIGLIP: dict[str, Any] = {
    "embed_dim": 64,
    "init_logit_bias": -10,
    "custom_text": True,
    "vision_cfg": {
        "image_size": 160,
        "timm_model_name": "test_vit",
        "timm_model_pretrained": False,
        "timm_pool": "map",
        "timm_proj": "none",
    },
    "text_cfg": {
        "context_length": 64,
        "vocab_size": 1000,
        "hf_tokenizer_name": "example-org/siglip-style",
        "tokenizer_kwargs": {"clean": "canonicalize"},
        "width": 64,
        "heads": 2,
        "layers": 2,
        "no_causal_mask": True,
        "proj_bias": True,
        "pool_type": "last",
        "norm_kwargs": {"eps": 1e-6},
    },
}


def write_config(folder: Path, model: dict[str, Any], preprocess: dict[str, Any]) -> str:
    """Write open_clip's `open_clip_config.json`; returns the `--model` value."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model, "preprocess_cfg": preprocess}))
    return f"local-dir:{folder}"


def random_model(model: str, *, seed: int = 0) -> Any:
    """An open_clip model of a `local-dir:` or registered architecture with seeded random weights, in eval mode."""
    import logging

    import open_clip
    import torch

    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # open_clip warns that the weights are random
    try:
        torch.manual_seed(seed)
        made = open_clip.create_model(model, pretrained=None, load_weights=False).eval()
    finally:
        root.setLevel(level)
    with torch.no_grad():
        for parameter in made.parameters():
            # Freshly initialised biases and norms are all zeros and ones: a graph that swapped them would still be right.
            parameter.add_(torch.randn_like(parameter) * 0.02)
    return made


def save_checkpoint(model: Any, path: Path, *, form: str = "plain") -> Path:
    """Save weights in one of the forms that users have: plain, nested, wrapped (`module.`) or safetensors."""
    import safetensors.torch
    import torch

    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    if form == "safetensors":
        safetensors.torch.save_file(state, path)
    elif form == "nested":
        torch.save({"epoch": 3, "state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}, path)
    elif form == "model":
        torch.save({"model": state}, path)
    else:
        torch.save(state, path)
    return path
