"""Which tensors each method moves, and how they are optimised."""

from __future__ import annotations

import math
from typing import Any

import models
import pytest
import torch
from tuning_support import ARCHITECTURE

from mcip_qdrant.errors import TuningError
from mcip_qdrant.manifest import Preprocess
from mcip_qdrant.tuning.hyper import HyperParameters, hyper_parameters
from mcip_qdrant.tuning.optimisation import learning_rate, make_optimizer, set_learning_rate
from mcip_qdrant.tuning.trainees import ClassTrainee, McipTrainee, PairTrainee, text_tensors

CONFIG = Preprocess(size=(32, 32), mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("models")
    return {
        "clip": models.write_config(folder / "clip", ARCHITECTURE, models.CLIP_PREPROCESS),
        "siglip": models.write_config(folder / "siglip", models.TINY_SIGLIP, models.SIGLIP_PREPROCESS),
        "resnet": models.write_config(folder / "resnet", models.TINY_RESNET, models.CLIP_PREPROCESS),
    }


def _pairs(model: Any, hyper: HyperParameters, *, frozen_images: bool) -> PairTrainee:
    return PairTrainee(model, CONFIG, hyper, rank=0, world_size=1, frozen_images=frozen_images)


@pytest.mark.parametrize("kind", ["clip", "siglip", "resnet"])
def test_class_methods_move_the_image_tower_and_proxies_alone(names: dict[str, str], kind: str) -> None:
    model = models.random_model(names[kind])
    for trainee_class in (ClassTrainee, McipTrainee):
        trainee = trainee_class(model, CONFIG, hyper_parameters("mcip"), classes=5, dimensions=32)
        moving = {name for name, _ in trainee.moving()}
        visual = {f"model.visual.{name}" for name, _ in model.visual.named_parameters()}
        buffers = {f"model.visual.{name}" for name, _ in model.visual.named_buffers()}
        assert moving == visual | buffers | {"arc_margin.proxies"}
        if kind == "clip":
            assert "model.visual.proj" in moving  # the projector is kept, and trained
        trainee.train()
        assert model.visual.training
        assert not any(
            module.training for name, module in model.named_modules() if name and not name.startswith("visual")
        )
        trainee.eval()
        assert not any(module.training for module in trainee.modules())


def test_re_alignment_moves_the_last_tensors_of_the_text_tower(names: dict[str, str]) -> None:
    siglip = models.random_model(names["siglip"])
    trainee = _pairs(siglip, hyper_parameters("realign"), frozen_images=True)
    moving = {name for name, _ in trainee.moving()}
    # For this family the paper's 16 tensors are the last block (12), the final norm (2) and the projection (2).
    assert {name for name in moving if name.startswith("model.text.")} == {
        f"model.text.{name}"
        for name, _ in siglip.text.named_parameters()
        if name.startswith(("transformer.resblocks.1.", "ln_final.", "text_projection."))
    }
    assert moving - {name for name in moving if name.startswith("model.text.")} == {"model.logit_scale"}
    clip = models.random_model(names["clip"])
    trainee = _pairs(clip, hyper_parameters("realign", text_tensors=3), frozen_images=True)
    assert {name for name, _ in trainee.moving()} - {"model.attn_mask"} == {
        "model.logit_scale", "model.ln_final.weight", "model.ln_final.bias", "model.text_projection",
    }  # fmt: skip
    assert [name for name, _ in text_tensors(clip)][:2] == ["token_embedding.weight", "positional_embedding"]
    with pytest.raises(TuningError, match="text tower has"):
        _pairs(clip, hyper_parameters("realign", text_tensors=99), frozen_images=True)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_contrastive_training_moves_everything_but_the_bias(names: dict[str, str], kind: str) -> None:
    model = models.random_model(names[kind])
    trainee = _pairs(model, hyper_parameters("contrastive"), frozen_images=False)
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == ({"logit_bias"} if kind == "siglip" else set())
    with torch.no_grad():
        model.logit_scale.fill_(9.0)
    trainee.after_step()
    assert model.logit_scale.item() == pytest.approx(math.log(100))
    with torch.no_grad():
        model.logit_scale.fill_(-1.0)
    trainee.after_step()
    assert model.logit_scale.item() == 0


def test_pixels_are_normalised_as_open_clip_does(names: dict[str, str]) -> None:
    model = models.random_model(names["clip"])
    trainee = ClassTrainee(model, CONFIG, hyper_parameters("gpr"), classes=2, dimensions=16).eval()
    pixels = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    planes = pixels.permute(0, 3, 1, 2) / 255
    planes = (planes - torch.tensor(CONFIG.mean)[:, None, None]) / torch.tensor(CONFIG.std)[:, None, None]
    expected = torch.nn.functional.normalize(model.encode_image(planes), dim=1)
    torch.testing.assert_close(trainee.images(pixels), expected)


def test_optimizer_groups(names: dict[str, str]) -> None:
    hyper = hyper_parameters("gpr")
    trainee = ClassTrainee(models.random_model(names["clip"]), CONFIG, hyper, classes=3, dimensions=16)
    optimizer = make_optimizer(trainee, hyper)
    matrices, vectors, proxies = optimizer.param_groups
    assert (matrices["lr"], vectors["lr"], proxies["lr"]) == (1e-6, 1e-6, 1e-4)
    assert (matrices["weight_decay"], vectors["weight_decay"], proxies["weight_decay"]) == (0.01, 0.0, 0.01)
    assert {value.ndim for value in vectors["params"]} == {1}
    assert proxies["params"] == [trainee.arc_margin.proxies]
    assert matrices["betas"] == (0.9, 0.999)
    assert matrices["eps"] == 1e-8
    moving = sum(value.requires_grad for value in trainee.parameters())
    assert sum(len(group["params"]) for group in optimizer.param_groups) == moving
    assert set_learning_rate(optimizer, 0, 10, hyper) == 1e-6
    assert proxies["lr"] == 1e-4


@pytest.mark.parametrize("warmup", [0, 5])
def test_schedule_is_timms(warmup: int) -> None:
    from timm.scheduler import CosineLRScheduler

    hyper = hyper_parameters("gpr", warmup_steps=warmup, lr=1e-3, lr_min=1e-5, warmup_lr=1e-6)
    holder = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    theirs = CosineLRScheduler(
        holder,
        t_initial=40 - warmup,
        lr_min=1e-5,
        warmup_t=warmup,
        warmup_lr_init=1e-6,
        warmup_prefix=True,
        t_in_epochs=False,
    )
    for step in range(40):
        theirs.step_update(step)
        assert learning_rate(1e-3, step, 40, hyper) == pytest.approx(holder.param_groups[0]["lr"], rel=1e-9)
    assert learning_rate(1e-7, 39, 40, hyper) == 1e-7  # a floor above the peak does not raise it


def test_gradients_through_the_whole_module_are_the_numerical_ones(names: dict[str, str]) -> None:
    """Central differences in float64, for some numbers of the first and last tensor that move, in each method."""
    torch.manual_seed(0)
    pixels = torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8)
    token_ids = torch.randint(1, 400, (4, 77))
    labels, captions = torch.tensor([0, 1, 2, 0]), torch.randn(5, 16, dtype=torch.float64)
    positives = torch.tensor([[1, 1, 0, 0, 0], [0, 0, 0, 0, 0], [0, 1, 1, 0, 0], [0, 0, 0, 0, 1]], dtype=torch.bool)
    vectors = torch.nn.functional.normalize(torch.randn(4, 16, dtype=torch.float64), dim=1)
    hyper = hyper_parameters("mcip", grad_checkpointing=False, odd_term=0.1, text_tensors=0)
    checkpointed = hyper_parameters("mcip", grad_checkpointing=True, text_tensors=0)
    cases: list[tuple[Any, dict[str, torch.Tensor]]] = [
        (
            lambda model: ClassTrainee(model, CONFIG, checkpointed, classes=3, dimensions=16),
            {"pixels": pixels, "labels": labels},
        ),
        (
            lambda model: McipTrainee(model, CONFIG, hyper, classes=3, dimensions=16),
            {"pixels": pixels, "labels": labels, "captions": captions, "positives": positives},
        ),
        (lambda model: _pairs(model, hyper, frozen_images=True), {"token_ids": token_ids, "image_vectors": vectors}),
        (lambda model: _pairs(model, hyper, frozen_images=False), {"token_ids": token_ids, "pixels": pixels}),
    ]
    for make, batch in cases:
        trainee = make(models.random_model(names["clip"])).double().eval()
        trainee._mean, trainee._std = trainee._mean.double(), trainee._std.double()
        # float() inside would cost the digits that differences need.
        trainee.images = lambda given, t=trainee: t.model.encode_image(
            (given.permute(0, 3, 1, 2).double() / 255 - t._mean) / t._std, normalize=True
        )
        trainee(**batch)["loss"].backward()
        moving = [value for value in trainee.parameters() if value.requires_grad]
        for value in (moving[0], moving[-1], moving[len(moving) // 2]):
            assert value.grad is not None
            place = int(value.grad.abs().argmax())
            flat = value.data.view(-1)
            step = 1e-6
            losses = []
            for sign in (1, -1):
                flat[place] += sign * step
                losses.append(trainee(**batch)["loss"].item())
                flat[place] -= sign * step
            numerical = (losses[0] - losses[1]) / (2 * step)
            assert value.grad.view(-1)[place].item() == pytest.approx(numerical, rel=1e-4, abs=1e-9)
