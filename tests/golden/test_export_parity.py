"""Exported graphs against torch and open_clip themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import models
import numpy as np
import open_clip
import pytest
import torch
from conftest import Exported
from open_clip.transform import PreprocessCfg, image_transform_v2
from photos import photo_paths
from PIL import Image
from tokenizer_texts import write_siglip_style

from mcip_qdrant.encoder import EncoderSettings, ImageEncoder, TextEncoder
from mcip_qdrant.errors import ExportError, TextCutWarning
from mcip_qdrant.export.bundle_writer import ExportRequest, export_bundle
from mcip_qdrant.export.golden import make_golden_set
from mcip_qdrant.export.towers import ImageTower, patch_convolution
from mcip_qdrant.manifest import Preprocess
from mcip_qdrant.query import QueryEncoder
from mcip_qdrant.session import Device

CPU = EncoderSettings(Device("cpu"))
TEXTS = ["a photo of a cat", "two dogs", "the sea", "ein Haus im Schnee", "🚀", "a" * 500, "x"]


def _torch_text(exported: Exported, texts: list[str]) -> np.ndarray[Any, Any]:
    with torch.inference_mode():
        return np.asarray(exported.model.encode_text(open_clip.get_tokenizer("ViT-B-32")(texts), normalize=True))


def _torch_images(exported: Exported, preprocess: dict[str, Any], size: int) -> np.ndarray[Any, Any]:
    transform = image_transform_v2(PreprocessCfg(size=size, **preprocess), is_train=False)
    pictures = torch.stack([transform(Image.open(path).convert("RGB")) for path in photo_paths()])
    with torch.inference_mode():
        return np.asarray(exported.model.encode_image(pictures, normalize=True))


def _cosine(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> float:
    return float((a.astype(np.float64) * b).sum(axis=1).min())


@pytest.mark.parametrize("batch", [1, 2, 7, 64])
def test_batch_axis_is_dynamic(clip: Exported, batch: int) -> None:
    rng = np.random.default_rng(batch)
    pixels = rng.integers(0, 256, (batch, 64, 64, 3), dtype=np.uint8)
    ids = rng.integers(1, 49000, (batch, 77), dtype=np.int64)
    mean, std = (np.array(models.CLIP_PREPROCESS[name], dtype=np.float32) for name in ("mean", "std"))
    planes = torch.from_numpy(((pixels.astype(np.float32) / 255 - mean) / std).transpose(0, 3, 1, 2).copy())
    with torch.inference_mode():
        images = clip.model.encode_image(planes, normalize=True).numpy()
        texts = clip.model.encode_text(torch.from_numpy(ids), normalize=True).numpy()
    found_images, found_texts = (
        ImageEncoder(clip.bundle, CPU).encode(pixels),
        TextEncoder(clip.bundle, CPU).encode_ids(ids),
    )
    assert found_images.shape == found_texts.shape == (batch, 32)
    assert found_images.dtype == found_texts.dtype == np.float32
    assert _cosine(found_images, images) >= 0.99999
    assert _cosine(found_texts, texts) >= 0.99999
    np.testing.assert_allclose(np.linalg.norm(found_images, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize(("precision", "bound"), [("fp32", 0.99999), ("fp16", 0.999), ("int8", 0.98)])
def test_photographs_and_texts(clip: Exported, precision: str, bound: float) -> None:
    encoder = QueryEncoder.open(clip.folder, device="cpu", precision=precision)  # type: ignore[arg-type]
    assert _cosine(encoder.images(list(photo_paths())), _torch_images(clip, models.CLIP_PREPROCESS, 64)) >= bound
    vectors = encoder.texts(TEXTS)
    assert _cosine(vectors, _torch_text(clip, TEXTS)) >= bound
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


def test_manifest_records_what_was_measured(clip: Exported) -> None:
    manifest = clip.bundle.manifest
    assert {(graph.tower, graph.precision) for graph in manifest.graphs} == {
        (tower, precision) for tower in ("visual", "textual") for precision in ("fp32", "fp16", "int8")
    }
    for graph in manifest.graphs:
        assert graph.parity.bound <= graph.parity.minimum <= 1.000001
        assert graph.parity.provider == "CPUExecutionProvider"
        assert graph.opset <= 20
    assert manifest.activation == "quick_gelu"
    assert manifest.preprocess.resize_mode == "shortest"


def test_fp16_graphs_are_half_the_size(clip: Exported) -> None:
    bundle = clip.bundle
    for tower in ("visual", "textual"):
        full, half = (sum(bundle.graph(tower, p).bytes.values()) for p in ("fp32", "fp16"))  # type: ignore[arg-type]
        assert half < 0.6 * full


@pytest.mark.parametrize(
    ("label", "config", "preprocess", "folded"),
    [
        ("clip", models.TINY_CLIP, models.CLIP_PREPROCESS, True),
        ("siglip", models.TINY_SIGLIP, models.SIGLIP_PREPROCESS, True),
        # Its first convolution has padding: normalisation must stay a step of the graph.
        ("resnet", models.TINY_RESNET, models.CLIP_PREPROCESS, False),
    ],
)
def test_normalisation_in_the_tower(
    tmp_path: Path, label: str, config: dict[str, Any], preprocess: dict[str, Any], folded: bool
) -> None:
    model = models.random_model(models.write_config(tmp_path / label, config, preprocess))
    size = config["vision_cfg"]["image_size"]
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, size, size, 3), dtype=np.uint8))
    settings = Preprocess(size=(size, size), mean=tuple(preprocess["mean"]), std=tuple(preprocess["std"]))
    mean, std = torch.tensor(settings.mean), torch.tensor(settings.std)
    with torch.inference_mode():
        reference = model.encode_image(((pixels / 255 - mean) / std).permute(0, 3, 1, 2), normalize=True)
        assert (patch_convolution(model.visual) is not None) == folded
        found = torch.nn.functional.normalize(ImageTower(model, settings)(pixels), dim=-1)
    assert float((reference * found).sum(dim=1).min()) > 0.999999


def test_external_data_and_a_resnet(tmp_path: Path) -> None:
    """A lowered threshold puts weights beside the graph, and a convolutional tower with batch norm exports as well."""
    name = models.write_config(tmp_path / "resnet", models.TINY_RESNET, models.CLIP_PREPROCESS)
    checkpoint = models.save_checkpoint(models.random_model(name), tmp_path / "r.pth")
    bundle = export_bundle(
        ExportRequest(
            model=name,
            checkpoint=checkpoint,
            output=tmp_path / "b",
            precisions=("fp32", "fp16", "int8"),
            external_data_above=1000,
        )
    )
    for graph in bundle.manifest.graphs:
        assert set(graph.sha256) == {graph.file, f"{graph.file}.data"}
        assert (bundle.directory / graph.file).stat().st_size < (bundle.directory / f"{graph.file}.data").stat().st_size
    bundle.check_hashes()
    assert ImageEncoder(bundle, CPU).encode(np.zeros((2, 64, 64, 3), np.uint8)).shape == (2, 32)


def test_padding_has_the_colour_that_open_clip_gives_it(tmp_path: Path) -> None:
    settings = models.CLIP_PREPROCESS | {"resize_mode": "longest", "fill_color": 127}
    name = models.write_config(tmp_path / "padded", models.TINY_CLIP, settings)
    model = models.random_model(name)
    checkpoint = models.save_checkpoint(model, tmp_path / "p.pth")
    export_bundle(ExportRequest(model=name, checkpoint=checkpoint, output=tmp_path / "b", precisions=("fp32",)))
    encoder = QueryEncoder.open(tmp_path / "b", device="cpu")
    assert encoder.bundle.manifest.preprocess.fill_color == 127
    transform = open_clip.create_model_and_transforms(name, load_weights=False)[2]
    pictures = [Image.effect_noise(size, 90).convert("RGB") for size in ((240, 60), (30, 200))]
    with torch.inference_mode():
        expected = model.encode_image(torch.stack([transform(one) for one in pictures]), normalize=True).numpy()
    assert _cosine(encoder.images(pictures), expected) >= 0.99999


def test_a_setting_that_would_be_dropped_stops_the_export(tmp_path: Path) -> None:
    """Whatever open_clip comes to know later: its own transform of the model decides."""
    settings = models.CLIP_PREPROCESS | {"resize_mode": "longest", "fill_color": 127}
    model = models.random_model(models.write_config(tmp_path / "padded", models.TINY_CLIP, settings))
    shortened = Preprocess.parse(models.CLIP_PREPROCESS | {"resize_mode": "longest", "size": (64, 64)})
    with pytest.raises(ExportError, match="golden picture 0 is not what open_clip does"):
        make_golden_set(model, open_clip.get_tokenizer("ViT-B-32"), shortened)


def test_siglip_style_model_end_to_end(tmp_path: Path) -> None:
    """Squash, mean 0.5, attention pooling, a Hugging Face tokenizer from a folder, no causal mask."""
    from mcip_qdrant.export.architecture import resolve_architecture
    from mcip_qdrant.export.reference_tokenizer import load_reference_tokenizer

    name = models.write_config(tmp_path / "siglip", models.TINY_SIGLIP, models.SIGLIP_PREPROCESS)
    folder = write_siglip_style(tmp_path / "tokenizer", size=1000)
    model = models.random_model(name)
    checkpoint = models.save_checkpoint(model, tmp_path / "s.safetensors", form="safetensors")
    export_bundle(
        ExportRequest(
            model=name,
            checkpoint=checkpoint,
            tokenizer=folder,
            output=tmp_path / "b",
            precisions=("fp32", "fp16", "int8"),
        )
    )
    encoder = QueryEncoder.open(tmp_path / "b", device="cpu")
    manifest = encoder.bundle.manifest
    assert (manifest.preprocess.resize_mode, manifest.preprocess.mean) == ("squash", (0.5, 0.5, 0.5))
    assert (manifest.tokenizer.cleaning, manifest.tokenizer.context_length) == ("canonicalize", 64)
    reference = load_reference_tokenizer(name, resolve_architecture(name).text_config, folder)
    texts = ["A photo, of: a CAT!", "two_dogs", "x" * 300, "the sea"]
    transform = image_transform_v2(PreprocessCfg(size=160, **models.SIGLIP_PREPROCESS), is_train=False)
    with torch.inference_mode():
        expected_texts = model.encode_text(reference(texts), normalize=True).numpy()
        pictures = torch.stack([transform(Image.open(path).convert("RGB")) for path in photo_paths()])
        expected_images = model.encode_image(pictures, normalize=True).numpy()
    with pytest.warns(TextCutWarning, match="1 of 4 texts cut"):
        found = encoder.texts(texts)
    assert _cosine(found, expected_texts) >= 0.99999
    assert _cosine(encoder.images(list(photo_paths())), expected_images) >= 0.99999
