"""The losses against other people's code and against plain loops in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from open_clip.loss import ClipLoss
from pytorch_metric_learning.losses import ArcFaceLoss

from mcip_qdrant.tuning.losses import ArcMargin, InfoNCE, add_margin, mc_arc_margin

Rows = NDArray[np.float64]


def _unit(rows: Rows) -> Rows:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _with_margin(cosine: float, margin: float) -> float:
    """Written with angles, where the code under test uses cosines alone."""
    angle = math.acos(min(1.0, max(-1.0, cosine)))
    if angle >= math.pi - margin:
        return cosine - margin * math.sin(math.pi - margin)
    return math.cos(angle + margin)


def _mc_loop(images: Rows, captions: Rows, own: list[list[int]], s: float, m: float, odd: float) -> float:
    x, t = _unit(images), _unit(captions)
    total = 0.0
    for i in range(len(x)):
        z = [s * (_with_margin(float(x[i] @ t[j]), m) if j in own[i] else float(x[i] @ t[j])) for j in range(len(t))]
        top = max(z)
        log_sum = top + math.log(sum(math.exp(value - top) for value in z))
        log_p = [value - log_sum for value in z]
        if own[i]:
            total -= sum(log_p[j] for j in own[i]) / len(own[i])
        if odd:
            total += odd * max(-(1 - (1 / len(own[i]) if j in own[i] else 0)) * log_p[j] for j in range(len(t)))
    return total / len(x)


def _mask(own: list[list[int]], columns: int) -> torch.Tensor:
    mask = torch.zeros(len(own), columns, dtype=torch.bool)
    for row, chosen in enumerate(own):
        mask[row, chosen] = True
    return mask


@pytest.mark.parametrize(("scale", "margin"), [(30.0, 0.1), (64.0, 0.5), (10.0, 1.2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_arc_margin_is_arcface(scale: float, margin: float, dtype: torch.dtype) -> None:
    torch.manual_seed(3)
    ours = ArcMargin(11, 16, scale=scale, margin=margin).to(dtype)
    theirs = ArcFaceLoss(11, 16, margin=math.degrees(margin), scale=scale).to(dtype)
    theirs.W.data = ours.proxies.detach().T.clone()
    labels = torch.randint(0, 11, (40,))
    # Also far on the wrong side, where the straight line takes over, and close to the proxy.
    rows = torch.randn(40, 16, dtype=dtype)
    rows[:10] = -ours.proxies.detach()[labels[:10]] + 0.01 * rows[:10]
    rows[10:20] = 3 * ours.proxies.detach()[labels[10:20]] + 0.01 * rows[10:20]
    one, other = rows.clone().requires_grad_(), rows.clone().requires_grad_()
    loss, expected = ours(one, labels), theirs(other, labels)
    loss.backward()
    expected.backward()
    bound = 1e-10 if dtype == torch.float64 else 2e-5
    torch.testing.assert_close(loss, expected, rtol=bound, atol=bound)
    gradient_bound = 1e-7 if dtype == torch.float64 else 5e-3  # their acos is steep there in float32
    torch.testing.assert_close(one.grad, other.grad, rtol=gradient_bound, atol=gradient_bound)
    torch.testing.assert_close(ours.proxies.grad.T, theirs.W.grad, rtol=gradient_bound, atol=gradient_bound)


def test_arc_margin_on_its_own_proxy_has_a_finite_gradient() -> None:
    loss = ArcMargin(3, 4)
    rows = loss.proxies.detach().clone().requires_grad_()
    loss(rows, torch.arange(3)).backward()
    assert torch.isfinite(rows.grad).all()
    assert torch.isfinite(loss.proxies.grad).all()


@settings(deadline=None)
@given(st.floats(-1, 1), st.floats(0.01, 1.5))
def test_margin_is_the_angle_rule_and_falls_with_the_angle(cosine: float, margin: float) -> None:
    made = add_margin(torch.tensor([cosine], dtype=torch.float64), margin)
    # 1e-6: below an angle of 1e-6 the sine is cut.
    assert made.item() == pytest.approx(_with_margin(cosine, margin), abs=2e-6)
    worse = add_margin(torch.tensor([cosine - 0.01], dtype=torch.float64), margin)
    assert worse.item() < made.item()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 7), st.integers(1, 30), st.sampled_from([0.0, 0.1]))
def test_mc_arc_margin_is_the_plain_loop(seed: int, batch: int, columns: int, odd: float) -> None:
    rng = np.random.default_rng(seed)
    images, captions = rng.normal(size=(batch, 6)), rng.normal(size=(columns, 6))
    counts = rng.choice([0, 1, 20], size=batch)
    own = [sorted(rng.choice(columns, size=min(count, columns), replace=False).tolist()) for count in counts]
    if batch > 1:
        own[1] = sorted({*own[1], *own[0][:2]})  # captions that two images share
    loss = mc_arc_margin(
        torch.from_numpy(images), torch.from_numpy(captions), _mask(own, columns), scale=30, margin=0.1, odd_term=odd
    )
    assert loss.item() == pytest.approx(_mc_loop(images, captions, own, 30, 0.1, odd), rel=1e-9, abs=1e-9)


def test_mc_arc_margin_without_any_caption_is_zero_and_teaches_nothing() -> None:
    images = torch.randn(3, 4, requires_grad=True)
    for captions in (torch.zeros(0, 4), torch.randn(5, 4)):
        loss = mc_arc_margin(images, captions, torch.zeros(3, len(captions), dtype=torch.bool))
        (gradient,) = torch.autograd.grad(loss, images)
        assert loss.item() == 0
        assert not gradient.any()


def test_with_one_caption_each_it_is_arc_margin_over_the_captions() -> None:
    torch.manual_seed(0)
    arc = ArcMargin(5, 8).double()
    images, labels = torch.randn(9, 8, dtype=torch.float64), torch.randint(0, 5, (9,))
    one_hot = torch.nn.functional.one_hot(labels, 5).bool()
    torch.testing.assert_close(mc_arc_margin(images, arc.proxies, one_hot), arc(images, labels))


def test_info_nce_is_open_clips_and_the_formula() -> None:
    torch.manual_seed(0)
    images, texts = (torch.nn.functional.normalize(torch.randn(12, 8, dtype=torch.float64), dim=1) for _ in range(2))
    scale = torch.tensor(14.3, dtype=torch.float64)
    ours = InfoNCE()(images, texts, scale)
    torch.testing.assert_close(ours, ClipLoss()(images, texts, scale), rtol=0, atol=1e-12)
    total = 0.0
    for i in range(12):
        to_texts = [math.exp(scale.item() * float(images[i] @ texts[j])) for j in range(12)]
        to_images = [math.exp(scale.item() * float(images[j] @ texts[i])) for j in range(12)]
        total += math.log(to_texts[i] / sum(to_texts)) + math.log(to_images[i] / sum(to_images))
    assert ours.item() == pytest.approx(-total / 24, rel=1e-12)


def test_gradients_are_the_numerical_ones() -> None:
    torch.manual_seed(1)
    double = {"dtype": torch.float64, "requires_grad": True}
    images, captions = torch.randn(4, 5, **double), torch.randn(6, 5, **double)
    arc, labels = ArcMargin(3, 5, margin=0.3).double(), torch.tensor([0, 2, 1, 0])
    own = _mask([[0, 1], [], [1, 2, 3], [5]], 6)
    assert torch.autograd.gradcheck(lambda x: arc(x, labels), (images,))
    assert torch.autograd.gradcheck(lambda x, t: mc_arc_margin(x, t, own, margin=0.3, odd_term=0.1), (images, captions))
    scale = torch.tensor(3.0, **double)
    assert torch.autograd.gradcheck(InfoNCE(), (images, captions[:4], scale))


def test_losses_ignore_autocast() -> None:
    torch.manual_seed(0)
    images, captions = torch.randn(6, 8), torch.randn(7, 8)
    arc, labels, own = ArcMargin(4, 8), torch.randint(0, 4, (6,)), torch.rand(6, 7) > 0.5
    plain = [
        arc(images, labels),
        mc_arc_margin(images, captions, own),
        InfoNCE()(images, captions[:6], torch.tensor(9.0)),
    ]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = [
            arc(images, labels),
            mc_arc_margin(images, captions, own),
            InfoNCE()(images, captions[:6], torch.tensor(9.0)),
        ]
    assert [loss.item() for loss in plain] == [loss.item() for loss in inside]
