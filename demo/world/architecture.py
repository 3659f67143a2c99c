"""The small model's architecture: a CLIP with a small ResNet and a small text transformer, and its tokenizer.

Written as the folder that open_clip calls `local-dir:`: `open_clip_config.json`, `tokenizer.json`,
`tokenizer_config.json`. The committed copy is `demo/world/small-world`; a test proves that it is what this module writes.
Trained weights lie beside it in `weights`, with a card that says how they were made.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Final

from tokenizers import Tokenizer, models, pre_tokenizers, processors

from mcip_qdrant.world.captions import words
from mcip_qdrant.world.render import PICTURE_SIZE

FOLDER: Final = Path(__file__).parent / "small-world"
WEIGHTS: Final = Path(__file__).parent / "weights" / "small-world.fp16.safetensors"
CARD: Final = WEIGHTS.with_name("small-world.json")
_PAD, _START, _UNKNOWN, _END = "<pad>", "<start>", "<unk>", "<end>"
_CONTEXT: Final = 20

# CLIP pools a text at its largest id, so the end marker comes last.
VOCABULARY: Final = [_PAD, _START, _UNKNOWN, *words(), _END]

MODEL: Final[dict[str, Any]] = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": PICTURE_SIZE, "layers": [1, 1, 1, 1], "width": 16},
    "text_cfg": {
        "context_length": _CONTEXT,
        "vocab_size": len(VOCABULARY),
        "hf_tokenizer_name": "mcip-qdrant/small-world",
        "tokenizer_kwargs": {"clean": "canonicalize"},
        "width": 128,
        "heads": 4,
        "layers": 2,
    },
}
PREPROCESS: Final[dict[str, Any]] = {
    "mean": [0.45, 0.45, 0.45],
    "std": [0.25, 0.25, 0.25],
    "interpolation": "bicubic",
    "resize_mode": "squash",
}


def bundle_name() -> str:
    """Name of the folder for the exported model: another one for other weights, so that an old export is never taken for it."""
    return f"small-world-{hashlib.sha256(WEIGHTS.read_bytes()).hexdigest()[:12]}.bundle"


def export_command(bundle: Path) -> tuple[str, ...]:
    """Arguments of `mcip-qdrant` that export the committed model to a folder."""
    model = ("--model", f"local-dir:{FOLDER}", "--checkpoint", str(WEIGHTS))
    return ("export", *model, "--precision", "fp32", "--output", str(bundle))


def write_architecture(folder: Path = FOLDER) -> str:
    """Write the folder; returns the `--model` value, `local-dir:<folder>`."""
    folder.mkdir(parents=True, exist_ok=True)
    described = {"model_cfg": MODEL, "preprocess_cfg": PREPROCESS}
    (folder / "open_clip_config.json").write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(VOCABULARY)}, unk_token=_UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{_START} $A {_END}",
        special_tokens=[(token, VOCABULARY.index(token)) for token in (_START, _END)],
    )
    tokenizer.add_special_tokens([_PAD, _START, _UNKNOWN, _END])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": _CONTEXT,
        "pad_token": _PAD,
        "bos_token": _START,
        "eos_token": _END,
        "unk_token": _UNKNOWN,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    return f"local-dir:{folder}"
