"""Checkpoint file -> open_clip model with exactly those weights. Checkpoints are untrusted: no code in them ever runs."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path

import open_clip
import safetensors
import safetensors.torch
import torch

from mcip_qdrant.errors import ExportError
from mcip_qdrant.export.architecture import LOCAL_PREFIX, Architecture
from mcip_qdrant.export.quiet import quiet_logging

_NESTED_UNDER = ("state_dict", "model", "model_state_dict")
_DEEPEST_NESTING = 8  # a pickle can hold a mapping that holds itself
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
        ExportError: unreadable file, a pickle that carries code, keys that do not fit, weights that are not finite or not plain
            floats, a configuration that open_clip cannot build, a tag that cannot be downloaded.
    """
    if checkpoint is not None:
        # Read first: a wrong file is found in a second, building the model can take half a minute.
        weights = read_checkpoint(checkpoint, released_at=architecture.checkpoint_url)
        try:
            model = _create(architecture, pretrained=None, patch_dropout=patch_dropout)
        except Exception as exc:  # whatever the configuration sets off inside the model's own code
            raise ExportError(
                f"open_clip cannot build {architecture.label} from its configuration ({type(exc).__name__}: {exc})"
            ) from exc
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
    with quiet_logging():  # among others, a warning that a model without a tag is random: its weights come next
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


def read_checkpoint(path: Path, *, released_at: str | None = None) -> dict[str, torch.Tensor]:
    """Read a safetensors file, or one that `torch.save` wrote, as a flat state_dict; memory-mapped where the format allows.

    Nesting under `state_dict` or `model` and the prefixes that DistributedDataParallel and torch.compile add are undone.

    Args:
        released_at: URL of the file, for whoever does not have it yet.

    Raises:
        ExportError: missing, damaged, carrying code, or not a state_dict.
    """
    if not path.is_file():
        raise ExportError(
            f"{path}: no such checkpoint file{f'; it is released at {released_at}' if released_at else ''}"
        )
    try:
        if _is_safetensors(path):
            raw: object = safetensors.torch.load_file(path)
        else:
            # Only the zip format can be mapped; files from before torch 1.6 are read whole.
            raw = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (OSError, safetensors.SafetensorError) as exc:
        raise ExportError(f"{path}: not a readable checkpoint: {exc}") from exc
    except Exception as exc:  # damaged bytes make the unpickler raise nearly anything
        if isinstance(exc, pickle.UnpicklingError) and "global" in str(exc).lower():
            raise ExportError(
                f"{path}: refused, and nothing in it was run: it holds Python objects besides tensors. "
                "Save the state_dict alone: torch.save(model.state_dict(), FILE)"
            ) from exc
        # In our own words: torch's advise to load the file without protection.
        raise ExportError(
            f"{path}: not a readable checkpoint: damaged, cut short, or written by something else than torch.save or safetensors"
        ) from exc
    return _flat(raw, path)


def _is_safetensors(path: Path) -> bool:
    """By content where it shows: the length of a JSON header in 8 bytes, then that header. Names are a matter of habit."""
    with path.open("rb") as stream:
        start = stream.read(9)
    fits = int.from_bytes(start[:8], "little") <= path.stat().st_size - 8
    return path.suffix.lower() == ".safetensors" or (start[8:] == b"{" and fits)


def _flat(raw: object, path: Path) -> dict[str, torch.Tensor]:
    for _ in range(_DEEPEST_NESTING):
        nested = (
            [raw[key] for key in _NESTED_UNDER if isinstance(raw.get(key), Mapping)] if isinstance(raw, Mapping) else []
        )
        if not nested:
            break
        raw = next((one for one in nested if any(isinstance(v, torch.Tensor) for v in one.values())), nested[0])
    if not isinstance(raw, Mapping) or not raw or not all(isinstance(v, torch.Tensor) for v in raw.values()):
        found = type(raw).__name__
        if isinstance(raw, Mapping):
            others = [str(name) for name, value in raw.items() if not isinstance(value, torch.Tensor)]
            found = f"a mapping with keys {', '.join(others[:5])} that hold no tensor" if others else "nothing"
        raise ExportError(
            f"{path}: expected a state_dict (names to tensors, or nested under 'state_dict' or 'model'), found {found}"
        )
    flat = {str(name): value for name, value in raw.items()}
    for prefix in _WRAPPERS:
        if all(name.startswith(prefix) for name in flat):
            flat = {name.removeprefix(prefix): value for name, value in flat.items()}
    return flat


def _load_strictly(model: torch.nn.Module, weights: dict[str, torch.Tensor], path: Path, label: str) -> None:
    built = model.state_dict()
    wanted = {name: tuple(tensor.shape) for name, tensor in built.items()}
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
    for name, tensor in weights.items():
        plain = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
        if not plain or _kind(tensor.dtype) != _kind(built[name].dtype):
            form = ", ".join(map(str, (tensor.dtype, tensor.layout, f"device {tensor.device.type}")))
            raise ExportError(
                f"{path}: tensor {name} is no plain {_kind(built[name].dtype)} tensor but {form}. "
                "Save the weights as they were trained, not quantised, sparse or emptied"
            )
    # assign: the file's own (mapped) memory is used, so a large model is never held twice.
    model.load_state_dict(weights, strict=True, assign=True)


def _kind(dtype: torch.dtype) -> str:
    if dtype.is_floating_point:
        return "float"
    return "integer" if dtype in {torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64} else str(dtype)
