"""Activation and preprocessing are never guessed: every case of the rule."""

from __future__ import annotations

from pathlib import Path

import models
import pytest

from mcip_qdrant.errors import ExportError
from mcip_qdrant.export.architecture import Architecture, resolve_architecture


@pytest.mark.parametrize(
    ("arguments", "activation", "resize_mode"),
    [
        ({"model": "ViT-L-14-336"}, "quick_gelu", "shortest"),
        ({"model": "ViT-L-14-336", "pretrained": "openai"}, "quick_gelu", "shortest"),
        ({"model": "ViT-L-14-336", "quick_gelu": False}, "gelu", "shortest"),
        ({"model": "ViT-L-14-336-quickgelu"}, "quick_gelu", "shortest"),
        ({"model": "mcip-vit-l-14-336"}, "quick_gelu", "shortest"),
        ({"model": "mcip-vit-so400m-14-siglip-384"}, "gelu", "squash"),
        ({"model": "ViT-SO400M-14-SigLIP-384"}, "gelu", "squash"),
        ({"model": "ViT-B-32", "pretrained": "openai"}, "quick_gelu", "shortest"),
        ({"model": "ViT-B-32", "pretrained": "laion2b_s34b_b79k"}, "gelu", "shortest"),
        ({"model": "ViT-B-32", "quick_gelu": True}, "quick_gelu", "shortest"),
        ({"model": "ViT-B-32", "quick_gelu": False}, "gelu", "shortest"),
        ({"model": "ViT-B-32", "base": "openai"}, "quick_gelu", "shortest"),
        ({"model": "ViT-B-32-quickgelu"}, "quick_gelu", "shortest"),
    ],
)
def test_settings(arguments: dict[str, object], activation: str, resize_mode: str) -> None:
    found = resolve_architecture(**arguments)  # type: ignore[arg-type]
    assert found.activation == activation
    assert found.preprocess["resize_mode"] == resize_mode


def test_siglip_mean_is_not_clip_mean() -> None:
    assert resolve_architecture("ViT-SO400M-14-SigLIP-384").preprocess["mean"] == [0.5, 0.5, 0.5]


def test_ambiguous_activation_is_refused() -> None:
    with pytest.raises(ExportError, match=r"--quick-gelu .* or --no-quick-gelu"):
        resolve_architecture("ViT-B-32")


def test_ambiguous_preprocessing_is_refused() -> None:
    """Some registered ViT-L-14 weights want mean 0.5, others CLIP's."""
    with pytest.raises(ExportError, match="--base TAG"):
        resolve_architecture("ViT-L-14", quick_gelu=False)
    assert resolve_architecture("ViT-L-14", base="laion2b_s32b_b82k").preprocess["mean"] == [0.5, 0.5, 0.5]
    assert resolve_architecture("ViT-L-14", base="datacomp_xl_s13b_b90k").preprocess["mean"] != [0.5, 0.5, 0.5]


@pytest.mark.parametrize(
    "arguments",
    [
        {"model": "ViT-B-32-quickgelu", "quick_gelu": False},
        {"model": "mcip-vit-l-14-336", "quick_gelu": False},
        {"model": "mcip-vit-so400m-14-siglip-384", "quick_gelu": True},
        {"model": "mcip-vit-l-14-336", "base": "webli"},
        {"model": "ViT-L-14-336", "base": "openai", "quick_gelu": False},
        {"model": "ViT-B-32", "base": "laion2b_s34b_b79k", "quick_gelu": True},
    ],
)
def test_contradiction_is_refused(arguments: dict[str, object]) -> None:
    with pytest.raises(ExportError, match="contradicts"):
        resolve_architecture(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("arguments", [{"model": "mcip-vit-l-14-336", "quick_gelu": True, "base": "openai"}])
def test_saying_what_is_known_is_no_contradiction(arguments: dict[str, object]) -> None:
    assert resolve_architecture(**arguments).activation == "quick_gelu"  # type: ignore[arg-type]


@pytest.mark.parametrize("tag", ["base", "pretrained"])
def test_a_local_folder_has_no_tags(tmp_path: Path, tag: str) -> None:
    name = models.write_config(tmp_path / "mine", models.TINY_CLIP, models.CLIP_PREPROCESS)
    with pytest.raises(ExportError, match="a folder has none"):
        resolve_architecture(name, **{tag: "openai"})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"model": "ViT-Z-99"}, "unknown --model"),
        ({"model": "ViT-B-32", "base": "nobody"}, "no registered tag"),
        ({"model": "local-dir:/nonexistent"}, "open_clip_config.json"),
    ],
)
def test_unknown_names(arguments: dict[str, str], words: str) -> None:
    with pytest.raises(ExportError, match=words):
        resolve_architecture(**arguments)  # type: ignore[arg-type]


def test_local_folder(tmp_path: Path) -> None:
    name = models.write_config(tmp_path / "mine", models.TINY_CLIP, models.CLIP_PREPROCESS)
    found = resolve_architecture(name)
    assert (found.label, found.activation) == ("mine", "quick_gelu")


def _local(folder: Path, **preprocess: object) -> Architecture:
    return resolve_architecture(
        models.write_config(folder / "mine", models.TINY_CLIP, models.CLIP_PREPROCESS | preprocess)
    )


def test_a_local_folder_may_set_every_key_of_open_clip(tmp_path: Path) -> None:
    given = {"fill_color": 127, "resize_mode": "longest", "mode": "RGB", "size": 999, "interpolation": "bilinear"}
    found = _local(tmp_path, **given).image_preprocess((64, 48))
    assert (found.fill_color, found.resize_mode, found.interpolation) == (127, "longest", "bilinear")
    assert found.size == (64, 48)  # open_clip takes the built model's, too
    assert _local(tmp_path).image_preprocess(64).fill_color == 0


@pytest.mark.parametrize(
    ("preprocess", "words"),
    [
        ({"mode": "L"}, "three RGB channels"),
        ({"padding": 3}, "unknown field 'padding'"),
        ({"interpolation": "nearest"}, "interpolation is 'nearest'"),
        ({"resize_mode": "stretch"}, "resize_mode is 'stretch'"),
        ({"std": [0, 0, 0]}, "std above 0"),
        ({"mean": 0.5}, "mean is 0.5"),
        ({"mean": ["a", "b", "c"]}, "mean is"),
        ({"mean": [float("nan")] * 3}, "mean is"),
        ({"fill_color": 300}, "within 0..255"),
        ({"fill_color": [1, 2, 3]}, "fill_color is"),
    ],
)
def test_preprocessing_that_no_bundle_can_carry(tmp_path: Path, preprocess: dict[str, object], words: str) -> None:
    with pytest.raises(ExportError, match=f"open_clip_config.json: .*{words}"):
        _local(tmp_path, **preprocess)


def test_fingerprint_knows_activation_but_not_the_name() -> None:
    """`X --quick-gelu` and `X-quickgelu` are the same model."""
    one = resolve_architecture("ViT-B-32", quick_gelu=True).fingerprint()
    assert one == resolve_architecture("ViT-B-32-quickgelu").fingerprint()
    assert one != resolve_architecture("ViT-B-32", quick_gelu=False).fingerprint()
