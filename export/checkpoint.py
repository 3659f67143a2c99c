"""Checkpoint file -> open_clip model with exactly those weights. Checkpoints are untrusted: no code in them ever runs."""

from __future__ import annotations

import logging
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import open_clip
import safetensors
import safetensors.torch
import torch

from mcip_qdrant.errors import ExportError
from mcip_qdrant.export.architecture import LOCAL_PREFIX, Architecture

_NESTED_UNDER = ("state_dict", "model", "model_state_dict")
_WRAPPERS = ("module.", "_orig_mod.")


def load_model(
    architecture: Architecture, *, checkpoint: Path | None, pretrained: str | None, patch_dropout: float = 0.0
) -> torch.nn.Module:
    """Build the architecture and give it the weights of a checkpoint file or of a registered tag; random ones without either.

    Args:
        architecture: what to build.
        checkpoint: weights file.
        pretrained: registered tag, where there is no file.
        patch_dropout: share of image patches, 0..1, that the model drops while it is trained; no weight depends on it.

    Returns:
        The model in eval mode, float32, on the CPU.

    Raises:
        ExportError: unreadable file, a pickle that carries code, keys that do not fit, weights that are not finite,
            a tag that cannot be downloaded.
    """
    if checkpoint is not None:
        # Read first: a wrong file is found in a second, building the model can take half a minute.
        weights = read_checkpoint(checkpoint)
        model = _create(architecture, pretrained=None, patch_dropout=patch_dropout)
        _load_strictly(model, weights, checkpoint, architecture.label)
    else:
        try:
            model = _create(architecture, pretrained=pretrained, patch_dropout=patch_dropout)
        except Exception as exc:  # the hub client, httpx and open_clip each raise kinds of their own
            raise ExportError(
                f"cannot get the weights {pretrained!r} of {architecture.label}: {exc}. "
                "Without a network, download the file elsewhere and pass --checkpoint FILE"
            ) from exc
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    model = model.float().eval()
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ExportError(f"{checkpoint or pretrained}: tensor {name} holds NaN or infinity; the training diverged")
    return model


def _create(architecture: Architecture, *, pretrained: str | None, patch_dropout: float) -> torch.nn.Module:
    # Where open_clip knows the preprocessing by itself it is left alone, so that the golden set can compare ours with its own.
    known = pretrained is not None or architecture.name.startswith(LOCAL_PREFIX)
    with _quiet_logging():
        model: torch.nn.Module = open_clip.create_model(
            architecture.name,
            pretrained=pretrained,
            load_weights=pretrained is not None,
            force_quick_gelu=architecture.activation == "quick_gelu",
            force_patch_dropout=patch_dropout,
            force_preprocess_cfg=None if known else dict(architecture.preprocess),
            pretrained_text=False,
            require_pretrained=pretrained is not None,
        )
    return model


@contextmanager
def _quiet_logging() -> Iterator[None]:
    """open_clip warns on the root logger that a model without a tag is random; here its weights come next."""
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(before)


def read_checkpoint(path: Path) -> dict[str, torch.Tensor]:
    """Read a `.safetensors`, `.pth` or `.pt` file as a flat state_dict; memory-mapped where the format allows.

    Nesting under `state_dict` or `model` and the prefixes that DistributedDataParallel and torch.compile add are undone.

    Raises:
        ExportError: missing, damaged, carrying code, or not a state_dict.
    """
    if not path.is_file():
        raise ExportError(f"{path}: no such checkpoint file")
    try:
        if path.suffix == ".safetensors":
            raw: object = safetensors.torch.load_file(path)
        else:
            # Only the zip format can be mapped; files from before torch 1.6 are read whole.
            raw = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as exc:
        if "global" not in str(exc).lower():
            raise _unreadable(path, exc) from exc
        raise ExportError(
            f"{path}: refused, and nothing in it was run: it holds Python objects besides tensors. "
            "Save the state_dict alone: torch.save(model.state_dict(), FILE)"
        ) from exc
    except (RuntimeError, ValueError, OSError, EOFError, KeyError, safetensors.SafetensorError) as exc:
        raise _unreadable(path, exc) from exc
    return _flat(raw, path)


def _unreadable(path: Path, exc: Exception) -> ExportError:
    first_line = next(iter(str(exc).splitlines()), "damaged or empty")
    return ExportError(f"{path}: not a readable checkpoint ({type(exc).__name__}: {first_line})")


def _flat(raw: object, path: Path) -> dict[str, torch.Tensor]:
    while isinstance(raw, Mapping) and not any(isinstance(value, torch.Tensor) for value in raw.values()):
        inner = next((raw[key] for key in _NESTED_UNDER if isinstance(raw.get(key), Mapping)), None)
        if inner is None:
            break
        raw = inner
    if not isinstance(raw, Mapping) or not raw or not all(isinstance(v, torch.Tensor) for v in raw.values()):
        found = (
            f"a mapping with keys {', '.join(map(str, list(raw)[:5]))}"
            if isinstance(raw, Mapping)
            else type(raw).__name__
        )
        raise ExportError(
            f"{path}: expected a state_dict (names to tensors, or nested under 'state_dict' or 'model'), found {found}"
        )
    flat = {str(name): value for name, value in raw.items()}
    for prefix in _WRAPPERS:
        if all(name.startswith(prefix) for name in flat):
            flat = {name.removeprefix(prefix): value for name, value in flat.items()}
    return flat


def _load_strictly(model: torch.nn.Module, weights: dict[str, torch.Tensor], path: Path, label: str) -> None:
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    missing = [name for name in wanted if name not in weights]
    unexpected = [name for name in weights if name not in wanted]
    misshapen = [
        f"{name} {tuple(weights[name].shape)} instead of {shape}"
        for name, shape in wanted.items()
        if name in weights and tuple(weights[name].shape) != shape
    ]
    if missing or unexpected or misshapen:
        problems = [
            f"{len(names)} {kind} ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"
            for kind, names in (("missing", missing), ("unexpected", unexpected), ("wrongly shaped", misshapen))
            if names
        ]
        raise ExportError(
            f"{path} does not fit {label}: {'; '.join(problems)}. The likely cause is a wrong --model: "
            "it must name the architecture that the checkpoint was trained with"
        )
    # assign: the file's own (mapped) memory is used, so a large model is never held twice.
    model.load_state_dict(weights, strict=True, assign=True)
