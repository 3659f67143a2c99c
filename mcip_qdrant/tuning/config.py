"""The files and choices of one training run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mcip_qdrant.evaluation.datasets import LabelledImages
from mcip_qdrant.tuning.hyper import DEFAULTS, HyperParameters, Method, hyper_parameters, require

Metric = Literal["image-map", "text-recall", "mean", "last"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TuneConfig:
    """One training run: which model, on what, where to, and how.

    Attributes:
        method: `gpr`, `mcip`, `realign`, `contrastive` (both towers on pairs), or `2sft` (gpr, then realign).
        model: preset, open_clip name or `local-dir:DIR`, as `export` takes it.
        checkpoint: starting weights; only `contrastive` may start without, from random ones.
        data: training images: a folder of classes, a table (as `tune captions` writes, say), or such a list already read.
            `gpr` needs classes, `mcip` classes and captions, `realign` and `contrastive` captions.
        pairs: images with captions for the second stage of `2sft`; by default `data`.
        output: folder for `model.pth`, `report.json`, the training state and the TensorBoard log.
        hyper: hyper-parameters; the method's own by default.
        realign_hyper: hyper-parameters of the second stage of `2sft`.
        validation: images to choose the best weights on; else a share `hold_out` of the data is kept from training.
        metric: what "best" means: `image-map` (full-ranking mAP, query out), `text-recall` (text-to-image recall@5), their
            `mean`, or `last` (no evaluation: the newest weights). None: image-map for gpr and mcip, else text-recall.
        device: `auto`, `cpu`, `cuda`, or `cuda:N` for a run of one process.
        loaders: processes that decode images; None: none on a CPU, up to 8 for a GPU.
        save_every: steps between saved states; a new best is saved at once. 0 saves at evaluations only, at ends of epochs with
            the metric `last`.
        accept_changes: go on from a saved state although hyper-parameters differ.
        restart: throw a saved state away.
        restart_if_start_differs: throw a saved state away if it began from other weights than these, instead of refusing: what a
            second stage needs when the first one was trained further.
        max_unreadable: share of drawn images, 0..1, that may fail to decode before the run stops.
    """

    method: Method
    model: str
    data: Path | LabelledImages
    output: Path
    checkpoint: Path | None = None
    quick_gelu: bool | None = None
    base: str | None = None
    tokenizer: Path | None = None
    pairs: Path | LabelledImages | None = None
    hyper: HyperParameters | None = None
    realign_hyper: HyperParameters | None = None
    validation: Path | LabelledImages | None = None
    hold_out: float = 0.05
    metric: Metric | None = None
    device: str = "auto"
    loaders: int | None = None
    save_every: int = 500
    tensorboard: bool = True
    accept_changes: bool = False
    restart: bool = False
    restart_if_start_differs: bool = False
    max_unreadable: float = 0.01

    def __post_init__(self) -> None:
        require(self.method in DEFAULTS, f"method {self.method!r} is none of {', '.join(DEFAULTS)}")
        require(0 <= self.hold_out < 1, "hold_out is a share, 0..1")
        require(0 <= self.max_unreadable <= 1, "max_unreadable is a share, 0..1")
        require(self.save_every >= 0, "save_every must not be negative")
        require(
            self.checkpoint is not None or self.method == "contrastive",
            f"{self.method} starts from trained weights: give a checkpoint",
        )

    @property
    def chosen_hyper(self) -> HyperParameters:
        """The hyper-parameters that apply."""
        return self.hyper or hyper_parameters(self.method)

    @property
    def chosen_metric(self) -> Metric:
        """The metric that applies."""
        return self.metric or ("image-map" if self.method in {"gpr", "mcip", "2sft"} else "text-recall")
