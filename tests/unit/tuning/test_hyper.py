"""The paper's values, and ranges."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from mcip_qdrant.errors import TuningError
from mcip_qdrant.tuning.hyper import HyperParameters, hyper_parameters, knobs_of

# The values of the code released with the paper (arXiv 2409.01936), typed a second time.
GPR = {
    "lr": 1e-6, "proxy_lr": 1e-4, "lr_min": 1e-7, "warmup_lr": 1e-8, "warmup_steps": 0, "weight_decay": 0.01,
    "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "batch_size": 128, "epochs": 3, "patience": 50, "tests_per_epoch": 200,
    "scale": 30, "margin": 0.1, "patch_dropout": 0.33, "grad_clip": 1.0, "grad_checkpointing": True, "squash": 1.125,
    "flip": 0.5, "brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "seed": 37, "epoch_share": 1.0,
}  # fmt: skip
MCIP = {**GPR, "arc_weight": 0.75, "caption_weight": 0.25, "odd_term": 0.0}
REALIGN = {
    "lr": 1e-5, "warmup_steps": 0, "weight_decay": 0.2, "beta1": 0.9, "beta2": 0.98, "eps": 1e-6, "batch_size": 16384,
    "epochs": 50, "epoch_share": 0.95, "text_tensors": 16, "max_logit_scale": 100, "grad_checkpointing": True, "seed": 0,
}  # fmt: skip


@pytest.mark.parametrize(("method", "values"), [("gpr", GPR), ("2sft", GPR), ("mcip", MCIP), ("realign", REALIGN)])
def test_defaults_are_the_papers(method: Any, values: dict[str, float]) -> None:
    made = hyper_parameters(method)
    assert {name: getattr(made, name) for name in values} == values
    assert made.precision == "auto"  # fp16 on a GPU


def test_each_method_shows_the_knobs_it_uses() -> None:
    assert set(GPR) - {"epoch_share"} <= set(knobs_of("gpr"))
    assert {"arc_weight", "caption_weight", "odd_term"} <= set(knobs_of("mcip"))
    assert not {"arc_weight", "text_tensors", "max_logit_scale"} & set(knobs_of("gpr"))
    assert {"text_tensors", "max_logit_scale"} <= set(knobs_of("realign"))
    assert not {"patch_dropout", "flip", "margin", "proxy_lr"} & set(knobs_of("realign"))
    for knob in fields(HyperParameters):
        assert knob.metadata["help"]
        assert knob.metadata["methods"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0), ("batch_size", 0), ("lr", 0), ("lr", -1e-3), ("lr_min", -1), ("beta2", 1.0), ("patch_dropout", 1.0),
        ("flip", 1.5), ("epoch_share", 0), ("epoch_share", 1.1), ("margin", 2.0), ("squash", 0.9), ("seed", -1), ("seed", 2**64),
        ("max_logit_scale", 0.5), ("odd_term", -0.1), ("text_tensors", -1),
    ],
)  # fmt: skip
def test_values_out_of_range_are_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(TuningError, match=name):
        hyper_parameters("mcip", **{name: value})
