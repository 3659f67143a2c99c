"""Both kinds of model against open_clip: the authors' preparation, zero-shot classifier, and one space_id for two files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from conftest import Exported
from photos import photo_paths, write_archive
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

from mcip_qdrant.errors import DeviceError
from mcip_qdrant.evaluation.checkpoint import CheckpointModel
from mcip_qdrant.evaluation.embed import Embedder
from mcip_qdrant.evaluation.metrics import zero_shot
from mcip_qdrant.evaluation.model import BundleModel
from mcip_qdrant.evaluation.preparation import describe, prepare
from mcip_qdrant.evaluation.prompts import class_vectors, repeated_names
from mcip_qdrant.manifest import Preprocess
from mcip_qdrant.session import Device

CPU = Device("cpu")


@pytest.mark.parametrize("size", [64, 224, 336, 384])
def test_the_authors_preparation_is_torchvisions_squash_and_centre_crop(size: int) -> None:
    config = Preprocess(size=(size, size), mean=(0.5,) * 3, std=(0.5,) * 3)
    large = int(1.125 * size)
    peer = Compose([Resize((large, large), InterpolationMode.BICUBIC), CenterCrop(size)])
    for path in photo_paths()[:4]:
        rgb = Image.open(path).convert("RGB")
        np.testing.assert_array_equal(prepare(rgb, config, "squash-1.125"), np.asarray(peer(rgb)))
    if size in {336, 384}:
        assert f"squash to {large}x{large}" in describe(config, "squash-1.125")
        assert large == {336: 378, 384: 432}[size]


@pytest.fixture(scope="module")
def checkpoint(clip: Exported) -> CheckpointModel:
    return CheckpointModel(clip.name, clip.checkpoint, device=CPU)


def test_a_checkpoint_and_its_bundle_are_one_space_with_the_same_vectors(
    clip: Exported, checkpoint: CheckpointModel, tmp_path: Path
) -> None:
    bundle = BundleModel(clip.bundle)
    assert checkpoint.space_id == bundle.space_id
    assert checkpoint.preprocess == bundle.preprocess
    assert checkpoint.embedding_dim == bundle.embedding_dim == 32
    assert checkpoint.variant == "torch-fp32-cpu"
    assert bundle.variant == "onnx-fp32-cpu"
    paths = write_archive(tmp_path, 12)
    texts = ["a dog", "two cats on a red sofa", "DOG!"]
    for preparation in ("open_clip", "squash-1.125"):
        ours = Embedder(bundle, preparation).images(paths).vectors[:]  # type: ignore[arg-type]
        theirs = Embedder(checkpoint, preparation).images(paths).vectors[:]  # type: ignore[arg-type]
        assert (ours * theirs).sum(axis=1).min() > 0.99999
    assert (bundle.encode_texts(texts) * checkpoint.encode_texts(texts)).sum(axis=1).min() > 0.99999


def test_checkpoint_vectors_are_open_clips_own(clip: Exported, checkpoint: CheckpointModel, tmp_path: Path) -> None:
    paths = write_archive(tmp_path, 6)
    _, _, transform = open_clip.create_model_and_transforms(clip.name, pretrained=None, load_weights=False)
    with torch.inference_mode():
        images = torch.stack([transform(Image.open(path).convert("RGB")) for path in paths])
        expected = clip.model.encode_image(images, normalize=True).numpy()
    found = Embedder(checkpoint).images(paths).vectors[:]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_class_vectors_are_those_of_open_clips_classifier(clip: Exported, checkpoint: CheckpointModel) -> None:
    names = ["tench", "sea lion", "cup"]
    templates = ("a photo of a {}.", "{} in the wild", "itap of the {}.")
    expected = open_clip.build_zero_shot_classifier(
        clip.model,
        tokenizer=open_clip.get_tokenizer(clip.name),
        classnames=names,
        templates=[lambda name, template=template: template.replace("{}", name) for template in templates],
        num_classes_per_batch=None,
        device="cpu",
    )
    for model in (checkpoint, BundleModel(clip.bundle)):
        found = class_vectors(Embedder(model), names, templates)
        np.testing.assert_allclose(found, expected.T.numpy(), atol=2e-5)


def test_imagenet_with_its_repeated_names_is_open_clips_top_1() -> None:
    """The best model there can be: each image lies where its class's words are. Two names stand twice among the thousand."""
    names = list(open_clip.IMAGENET_CLASSNAMES)
    words = sorted(set(names))
    made = np.random.default_rng(0).normal(size=(len(words), 64))
    classes = (made / np.linalg.norm(made, axis=1, keepdims=True)).astype(np.float32)[
        [words.index(name) for name in names]
    ]
    labels = np.repeat(np.arange(1000), 3)
    logits = torch.from_numpy(100 * classes[labels] @ classes.T)
    # open_clip_train.zero_shot.accuracy, as evaluation of open_clip takes it
    expected = logits.topk(1, 1, True, True)[1].flatten().numpy() == labels
    found = zero_shot(classes[labels], labels, classes, repeated=repeated_names(names))
    assert found.mean == 0.998
    firsts = np.isin(labels, [names.index("missile"), names.index("sunglasses")])
    assert found.values[firsts].all()
    # Which of two equal scores torch puts first is its own affair; the figure is not.
    assert found.mean == pytest.approx(expected.mean())


def test_cuda_is_refused_where_there_is_none(clip: Exported) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    with pytest.raises(DeviceError, match="torch finds no CUDA"):
        CheckpointModel(clip.name, clip.checkpoint, device=Device("cuda"))
