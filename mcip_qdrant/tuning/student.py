"""The model that learns: built as `export` builds it, with what belongs to it."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch

from mcip_qdrant.bundle import file_sha256
from mcip_qdrant.cpus import available_cpus
from mcip_qdrant.errors import TuningError
from mcip_qdrant.export.architecture import resolve_architecture
from mcip_qdrant.export.checkpoint import load_model
from mcip_qdrant.export.reference_tokenizer import load_reference_tokenizer
from mcip_qdrant.export.towers import OpenClipModel
from mcip_qdrant.manifest import Preprocess
from mcip_qdrant.tuning.stored import digest

_MOST_LOADERS: Final = 8


@dataclass(frozen=True, slots=True)
class Source:
    """Which model to build, in the words of `export`; random weights without a checkpoint."""

    model: str
    checkpoint: Path | None
    quick_gelu: bool | None = None
    base: str | None = None
    tokenizer: Path | None = None


@dataclass(frozen=True, slots=True)
class Student:
    """A model with what belongs to it: preprocessing, tokenizer, and the digest of the weights it started from."""

    model: OpenClipModel
    preprocess: Preprocess
    tokenizer: Any
    identity: str

    @property
    def dimensions(self) -> int:
        """Length of its vectors."""
        return embedding_dimensions(self.model)


def load_student(source: Source, *, patch_dropout: float, seed: int) -> Student:
    """Build the model with its starting weights; random ones, by seed, without a checkpoint.

    Raises:
        ExportError: architecture, checkpoint or tokenizer refused, for the reasons that `export` has.
    """
    architecture = resolve_architecture(source.model, quick_gelu=source.quick_gelu, base=source.base)
    tokenizer = load_reference_tokenizer(architecture.name, architecture.text_config, source.tokenizer)
    torch.manual_seed(seed)
    model: OpenClipModel = load_model(
        architecture, checkpoint=source.checkpoint, pretrained=None, patch_dropout=patch_dropout
    )
    for parameter in model.parameters():
        # The checkpoint's file is mapped: training must not write to those pages, nor fail when the file is replaced.
        parameter.data = parameter.data.clone()
    preprocess = architecture.image_preprocess(model.visual.image_size)
    weights = "random" if source.checkpoint is None else file_sha256(source.checkpoint)
    described = json.dumps([architecture.fingerprint(), asdict(preprocess)], sort_keys=True, default=str)
    return Student(model, preprocess, tokenizer, digest([weights, described]))


def embedding_dimensions(model: OpenClipModel) -> int:
    """Length D of a model's vectors, asked of the model itself."""
    length = getattr(model, "context_length", None) or model.text.context_length
    with torch.inference_mode():
        return int(model.encode_text(torch.zeros((1, length), dtype=torch.int64)).shape[1])


def precision_context(
    precision: str, device: torch.device
) -> tuple[Callable[[], AbstractContextManager[Any]], torch.amp.GradScaler]:
    """Autocast and gradient scaler for a precision on a device.

    Raises:
        TuningError: fp16 on a CPU, whose kernels lack it.
    """
    chosen = ("fp16" if device.type == "cuda" else "fp32") if precision == "auto" else precision
    if chosen == "fp16" and device.type != "cuda":
        raise TuningError("--precision fp16 needs a GPU; on a CPU use fp32 or bf16")
    kind = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(chosen)
    scaler = torch.amp.GradScaler(device.type, enabled=chosen == "fp16")
    return (lambda: torch.autocast(device.type, dtype=kind, enabled=kind is not None)), scaler


def loader_count(asked: int | None, device: torch.device) -> int:
    """Processes that decode images for one process with the model, unless so many were asked for."""
    if asked is not None:
        return asked
    return min(_MOST_LOADERS, available_cpus()) if device.type == "cuda" else 0
