"""Models and photographs for the benchmarks, made once in the work folder. Nothing is downloaded.

Models have seeded random weights: speed does not depend on them, as long as they bring no subnormal numbers (see
`_ingest_peers.py`). Three forms of the same weights: the checkpoint file, our bundle, and a folder that fastembed takes
for its built-in "Qdrant/clip-ViT-B-32-vision" (float32 `[B, 3, H, W]` normalised pixels in, nothing folded).
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "demo"))

from sample_photos import sample_photos

FASTEMBED_NAME = "Qdrant/clip-ViT-B-32-vision"
CONTEXT_LENGTH = 77

# 512 numbers per vector and 224 pixels, because fastembed is told that this is a ViT-B/32.
_TINY: dict[str, Any] = {
    "embed_dim": 512,
    "vision_cfg": {"image_size": 224, "layers": 1, "width": 64, "head_width": 32, "patch_size": 32},
    "text_cfg": {"context_length": CONTEXT_LENGTH, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 1},
}


@dataclass(frozen=True, slots=True)
class Model:
    """One model: `name` for open_clip, and the three forms of its weights."""

    name: str
    checkpoint: Path
    bundle: Path
    fastembed: Path


def vit_b_32(work: Path) -> Model:
    """ViT-B/32 in fp32 and int8."""
    return _made(work / "vit-b-32", "ViT-B-32", ["--no-quick-gelu"])


def tiny(work: Path) -> Model:
    """A model so small that everything around it shows."""
    folder = work / "tiny-config"
    folder.mkdir(exist_ok=True)
    described = {"model_cfg": _TINY, "preprocess_cfg": {"interpolation": "bicubic", "resize_mode": "shortest"}}
    (folder / "open_clip_config.json").write_text(json.dumps(described))
    return _made(work / "tiny", f"local-dir:{folder}", [])


def _made(folder: Path, name: str, arguments: list[str]) -> Model:
    model = Model(name, folder / "random.pth", folder / "bundle", folder / "fastembed")
    if not (model.fastembed / "preprocessor_config.json").exists():
        print(f"making {folder.name} (once)", file=sys.stderr, flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        _save_checkpoint(model)
        command = [sys.executable, "-W", "ignore", "-m", "mcip_qdrant", "export", "--model", name, *arguments]
        command += ["--checkpoint", model.checkpoint, "--precision", "fp32,int8", "--output", model.bundle]
        subprocess.run(command, check=True, stdout=sys.stderr)
        _save_for_fastembed(model)
    return model


def _open_clip_model(name: str) -> Any:
    import logging

    import open_clip
    import torch

    logging.getLogger().setLevel(logging.ERROR)
    torch.manual_seed(0)
    return open_clip.create_model(name, pretrained=None, load_weights=False).eval()


def _save_checkpoint(model: Model) -> None:
    import torch

    torch.save(_open_clip_model(model.name).state_dict(), model.checkpoint)


def _save_for_fastembed(model: Model) -> None:
    import torch

    from mcip_qdrant.export.graphs import export_raw, finish
    from mcip_qdrant.manifest import Manifest

    class Visual(torch.nn.Module):
        def __init__(self, clip: Any) -> None:
            super().__init__()
            self.clip = clip

        def forward(self, pixels: Any) -> Any:
            return self.clip.encode_image(pixels)

    clip = _open_clip_model(model.name)
    clip.load_state_dict(torch.load(model.checkpoint, weights_only=True))
    model.fastembed.mkdir()
    preprocess = Manifest.from_json((model.bundle / "manifest.json").read_text()).preprocess
    height, width = preprocess.size
    path = model.fastembed / "model.onnx"
    example = torch.randn(2, 3, height, width)
    export_raw(Visual(clip), example, "pixel_values", path, external_data_above=1 << 40)
    finish(path, "pixel_values")
    described = {
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": height},
        "resample": int(Image.Resampling.BICUBIC),
        "do_center_crop": True,
        "crop_size": {"height": height, "width": width},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocess.mean),
        "image_std": list(preprocess.std),
        "feature_extractor_type": "CLIPFeatureExtractor",
        "image_processor_type": "CLIPImageProcessor",
    }
    (model.fastembed / "preprocessor_config.json").write_text(json.dumps(described))


def photos(work: Path, count: int, width: int, height: int) -> Path:
    """A folder of `count` different JPEGs (quality 90): sections of the sample photographs, resized to `width` x `height`.

    The sections are smaller than 12 megapixels, so photos of that size are upscaled ones, and are to be called that.
    """
    folder = work / f"photos-{width}x{height}-{count}"
    if folder.exists():
        return folder
    print(f"making {count} photos of {width}x{height} (once)", file=sys.stderr, flush=True)
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    choose = random.Random(0)
    sources = []
    for path in sample_photos():
        with Image.open(path) as opened:
            sources.append(opened.convert("RGB"))
    for number in range(count):
        source = sources[number % len(sources)]
        largest = min(source.width / width, source.height / height)
        scale = largest * choose.uniform(0.6, 1.0)
        left = choose.uniform(0, source.width - width * scale)
        top = choose.uniform(0, source.height - height * scale)
        box = (left, top, left + width * scale, top + height * scale)
        photo = source.resize((width, height), Image.Resampling.BICUBIC, box=box)
        photo.save(part / f"{number:04}.jpg", quality=90)
    part.rename(folder)
    return folder
