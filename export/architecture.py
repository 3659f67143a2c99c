"""Settings that a checkpoint file cannot tell: activation, preprocessing, tokenizer. They come from open_clip's registry.

The plain `ViT-L-14-336` config builds GELU although every registered checkpoint of it was trained with QuickGELU, and
open_clip's default preprocessing is wrong for SigLIP: both give plausible but wrong vectors without any error.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import open_clip
from open_clip.transform import PreprocessCfg

from mcip_qdrant.errors import BundleError, ExportError
from mcip_qdrant.export.presets import PRESETS
from mcip_qdrant.manifest import Activation, Preprocess

LOCAL_PREFIX = "local-dir:"
# What a configuration means where it says nothing. Taken whole, so that no setting of open_clip's can be left out; `size` is
# the built model's.
_DEFAULTS: Mapping[str, Any] = {key: value for key, value in asdict(PreprocessCfg()).items() if key != "size"}
# Knobs of training, and tokenizer names (the tokenizer's own digest covers those): they do not change what a vector means.
_NOT_ARCHITECTURE = {
    "patch_dropout",
    "timm_drop",
    "timm_drop_path",
    "timm_model_pretrained",
    "hf_model_pretrained",
    "hf_tokenizer_name",
    "tokenizer_kwargs",
    "tokenizer_mode",
}


@dataclass(frozen=True, slots=True)
class Architecture:
    """One open_clip architecture with the settings that decide what its vectors mean.

    `name` is what open_clip is asked for, `preprocess` holds open_clip's preprocessing keys without `size`, and `text_config`
    is open_clip's `text_cfg`.
    """

    name: str
    activation: Activation
    preprocess: Mapping[str, Any]
    config: Mapping[str, Any]
    decided_by: str
    checkpoint_url: str | None = None
    """Where the weights of a preset are released."""

    @property
    def text_config(self) -> Mapping[str, Any]:
        """open_clip's `text_cfg` of this architecture."""
        return dict(self.config["text_cfg"])

    @property
    def label(self) -> str:
        """Name to show: the folder's own name for a local architecture."""
        return Path(self.name.removeprefix(LOCAL_PREFIX)).name if self.name.startswith(LOCAL_PREFIX) else self.name

    def image_preprocess(self, image_size: int | Sequence[int]) -> Preprocess:
        """Preprocessing of images for a model that was built with `image_size` (`model.visual.image_size`), in pixels."""
        height, width = (image_size, image_size) if isinstance(image_size, int) else map(int, image_size)
        return Preprocess.parse({**self.preprocess, "size": (height, width)})

    def fingerprint(self) -> dict[str, Any]:
        """The part of `space_id` that tensors cannot carry: layers, widths, heads and the activation."""
        described = _without_training_knobs(self.config)
        described.pop("quick_gelu", None)
        described["activation"] = self.activation
        return described


def resolve_architecture(
    model: str, *, pretrained: str | None = None, quick_gelu: bool | None = None, base: str | None = None
) -> Architecture:
    """Find architecture, activation and preprocessing, or refuse where that would be a guess.

    Args:
        model: an open_clip name, a preset, or `local-dir:DIR` with open_clip's `open_clip_config.json`.
        pretrained: the registered tag that is being exported.
        quick_gelu: what the user says about the activation.
        base: the registered tag that a checkpoint file was fine-tuned from.

    Raises:
        ExportError: unknown name or tag; arguments that contradict each other; the registered tags disagree and nobody said which
            one applies.
    """
    preset = PRESETS.get(model)
    if preset is not None:
        if base not in (None, preset.base_tag):
            raise ExportError(f"--model {model} follows the tag {preset.base_tag!r}; --base {base} contradicts it")
        model, base = preset.model, preset.base_tag
    if model.startswith(LOCAL_PREFIX):
        if pretrained or base:
            raise ExportError(
                f"--model {model}: --base and --pretrained name registered tags, and a folder has none. Its settings are those of its "
                "open_clip_config.json, its weights come by --checkpoint"
            )
        return _local_architecture(model, quick_gelu)
    config = open_clip.get_model_config(model)
    if config is None:
        known = ", ".join(sorted([*PRESETS, *open_clip.list_models()]))
        raise ExportError(f"unknown --model {model!r}. Presets and open_clip architectures: {known}")
    tags = {tag: open_clip.get_pretrained_cfg(model, tag) for tag in open_clip.list_pretrained_tags_by_model(model)}
    chosen = pretrained or base
    if chosen is not None:
        if chosen not in tags:
            raise ExportError(f"{model} has no registered tag {chosen!r}; registered: {', '.join(tags) or 'none'}")
        tags = {chosen: tags[chosen]}
    if quick_gelu is False and config.get("quick_gelu"):
        raise ExportError(f"--model {model} is itself a QuickGELU architecture; --no-quick-gelu contradicts it")
    activation = _agreed_activation(model, config, tags, quick_gelu)
    if chosen is not None and quick_gelu is not None and quick_gelu != (_activation_of(tags[chosen]) == "quick_gelu"):
        said, meant = ("--quick-gelu", "GELU") if quick_gelu else ("--no-quick-gelu", "QuickGELU")
        raise ExportError(f"the tag {chosen!r} of {model} was trained with {meant}; {said} contradicts it")
    matching = {tag: cfg for tag, cfg in tags.items() if _activation_of(cfg) == activation} or tags
    preprocess = _agreed_preprocess(model, matching)
    decided_by = f"tag {chosen}" if chosen else f"registered tags of {model}: {', '.join(sorted(matching))}"
    url = preset.checkpoint_url if preset is not None else None
    return Architecture(model, activation, preprocess, config, decided_by, url)


def _local_architecture(model: str, quick_gelu: bool | None) -> Architecture:
    path = Path(model.removeprefix(LOCAL_PREFIX)) / "open_clip_config.json"
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
        config, given = described["model_cfg"], described["preprocess_cfg"]
        _ = dict(config["vision_cfg"]), dict(config["text_cfg"]), config["embed_dim"]
        preprocess = {**_DEFAULTS, **{key: value for key, value in given.items() if value is not None}}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
        raise ExportError(
            f"{path}: cannot read an architecture ({type(exc).__name__}: {exc}). It must be open_clip's "
            f'open_clip_config.json with "model_cfg" and "preprocess_cfg" ({", ".join(_DEFAULTS)})'
        ) from exc
    preprocess.pop("size", None)  # open_clip, too, takes it from vision_cfg
    _check_preprocess(preprocess, str(path))
    activation: Activation = "quick_gelu" if config.get("quick_gelu") or quick_gelu else "gelu"
    if quick_gelu is False and activation == "quick_gelu":
        raise ExportError(f'{path} says "quick_gelu": true; --no-quick-gelu contradicts it')
    return Architecture(model, activation, preprocess, config, path.name)


def _activation_of(config: Mapping[str, Any]) -> Activation:
    return "quick_gelu" if config.get("quick_gelu", False) else "gelu"


def _agreed_activation(
    model: str, config: Mapping[str, Any], tags: Mapping[str, Mapping[str, Any]], quick_gelu: bool | None
) -> Activation:
    if quick_gelu is not None:
        return "quick_gelu" if quick_gelu else "gelu"
    if config.get("quick_gelu"):
        return "quick_gelu"
    by_activation: dict[Activation, list[str]] = {}
    for tag, cfg in tags.items():
        by_activation.setdefault(_activation_of(cfg), []).append(tag)
    if len(by_activation) > 1:
        raise ExportError(
            f"a checkpoint of {model} does not tell its activation, and the registered tags differ: "
            f"QuickGELU for {_some(by_activation['quick_gelu'])}; GELU for {_some(by_activation['gelu'])}. "
            "Say --quick-gelu (weights that descend from OpenAI's, among others) or --no-quick-gelu; "
            "the wrong one gives plausible but wrong vectors"
        )
    return next(iter(by_activation), _activation_of(config))


def _agreed_preprocess(model: str, tags: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    variants: dict[str, list[str]] = {}
    for tag, cfg in tags.items():
        chosen = {key: cfg.get(key) or default for key, default in _DEFAULTS.items()}
        variants.setdefault(json.dumps(chosen, sort_keys=True), []).append(tag)
    if not variants:
        raise ExportError(
            f"open_clip registers no pretrained weights for {model}, so nothing says which preprocessing its images need. "
            'Write a folder with open_clip_config.json ("model_cfg", "preprocess_cfg") and pass --model local-dir:FOLDER'
        )
    if len(variants) > 1:
        choices = "; ".join(f"{_some(names)}: {variant}" for variant, names in variants.items())
        raise ExportError(
            f"the registered tags of {model} need different preprocessing, and a checkpoint file does not tell which one "
            f"is right. Say --base TAG, the tag it was fine-tuned from. {choices}"
        )
    preprocess = dict(json.loads(next(iter(variants))))
    _check_preprocess(preprocess, model)
    return preprocess


def _check_preprocess(preprocess: Mapping[str, Any], where: str) -> None:
    try:
        Preprocess.parse({**preprocess, "size": (1, 1)})
    except BundleError as exc:
        raise ExportError(f"{where}: preprocessing that cannot be exported: {exc}") from exc


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:4])
    return shown if len(names) <= 4 else f"{shown} and {len(names) - 4} more"


def _without_training_knobs(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _without_training_knobs(value) if isinstance(value, dict) else value
        for key, value in config.items()
        if key not in _NOT_ARCHITECTURE
    }
