"""Real training runs of a small model, in this process."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import signal
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from tuning_support import read_errors, write_archive, write_model

from mcip_qdrant.errors import SourceError, TuningError
from mcip_qdrant.evaluation.datasets import read_table
from mcip_qdrant.evaluation.metrics import caption_retrieval, full_ranking_map
from mcip_qdrant.picture import rgb_image
from mcip_qdrant.tuning import TuneConfig, TuneReport, exam, hyper_parameters, run
from mcip_qdrant.tuning.advice import helpful_memory_errors
from mcip_qdrant.tuning.state import load_state

SMALL = {"batch_size": 12, "epochs": 2, "tests_per_epoch": 1, "lr": 1e-3}
TEXT = ("token_embedding", "positional_embedding", "transformer", "ln_final", "text_projection")


@pytest.fixture(scope="module")
def student_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    return write_model(tmp_path_factory.mktemp("student"))


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_archive(tmp_path_factory.mktemp("archive"))


class Watcher:
    """A listener that keeps what it hears, and may act at a step."""

    def __init__(self, at: dict[int, Callable[[], object]] | None = None) -> None:
        self.notes: list[str] = []
        self.losses: dict[int, float] = {}
        self.at = at or {}

    def begin(self, what: str, total: int, done: int) -> None:
        self.stage = (what, total, done)

    def advance(self, items: int) -> None:
        pass

    def values(self, step: int, values: dict[str, float]) -> None:
        if "loss" in values:
            self.losses[step] = values["loss"]
            self.at.pop(step, lambda: None)()

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def config(student_files: tuple[str, Path], table: Path, tmp_path: Path) -> Callable[..., TuneConfig]:
    def make(method: Any, output: str = "out", data: Any = table, hyper: Any = None, **options: Any) -> TuneConfig:
        options.setdefault("tensorboard", False)
        chosen = hyper_parameters(method, **{**SMALL, **(hyper or {})})
        return TuneConfig(
            method=method, model=student_files[0], checkpoint=student_files[1], data=data, output=tmp_path / output,
            hyper=chosen, **options,
        )  # fmt: skip

    return make


def _weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)


def _grade(name: str, weights: Path, images: Any) -> tuple[float, float]:
    """Both metrics of a model file, by open_clip's own road from file to vector."""
    model, _, preprocess = open_clip.create_model_and_transforms(name)
    model.load_state_dict(_weights(weights))
    tokens = open_clip.get_tokenizer(name)
    texts = [text for own in images.captions for text in own]
    with torch.inference_mode():
        pictures = torch.stack([preprocess(rgb_image(path)) for path in images.paths])
        vectors = model.eval().encode_image(pictures, normalize=True).numpy()
        text_vectors = model.encode_text(tokens(texts), normalize=True).numpy()
    of = np.repeat(np.arange(len(images)), [len(own) for own in images.captions])
    found = caption_retrieval(vectors, text_vectors, of, ks=(5,)).text_to_image[5].mean
    return full_ranking_map(vectors, images.labels, query_in_ranking=False).mean, found


@pytest.mark.parametrize("method", ["gpr", "mcip", "realign", "contrastive"])
def test_a_run_learns_and_leaves_frozen_parts_alone_to_the_bit(
    method: Any, config: Callable[..., TuneConfig], student_files: tuple[str, Path], table: Path, tmp_path: Path
) -> None:
    watcher = Watcher()
    images = read_table(table)
    hyper = {"epochs": 4, "text_tensors": 15} if method == "realign" else {"epochs": 4}
    report = run(config(method, validation=images, hyper={**hyper, "seed": 3}), watcher)
    before, after = _weights(student_files[1]), _weights(report.model)
    assert set(before) == set(after)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    visual = {name for name in before if name.startswith("visual.")}
    text = {name for name in before if name.startswith(TEXT)}
    if method in {"gpr", "mcip"}:
        assert changed == visual
    elif method == "realign":
        assert changed <= text | {"logit_scale"}
        assert {"text_projection", "ln_final.weight", "logit_scale"} <= changed
        assert not any(name.startswith(("token_embedding", "transformer.resblocks.0")) for name in changed)
    else:
        assert changed == set(before)
    losses = list(watcher.losses.values())
    assert np.mean(losses[-4:]) < np.mean(losses[:4])
    # The report's figures are those of the file, measured from outside.
    image_map, recall = _grade(student_files[0], report.model, images)
    measured = image_map if method in {"gpr", "mcip"} else recall
    assert report.metric == ("image-map" if method in {"gpr", "mcip"} else "text-recall")
    assert report.best == pytest.approx(measured, abs=1e-6)
    assert report.best == max(value for _, value in report.history)
    assert report.best_step in {step for step, value in report.history if value == report.best}
    assert json.loads((tmp_path / "out/report.json").read_text()) == report.as_json()
    # Re-alignment leaves out the last twentieth of each epoch.
    assert report.steps == len(losses) == (12 if method == "realign" else 16)
    assert report.start == pytest.approx(
        _grade(student_files[0], student_files[1], images)[method in {"realign", "contrastive"}], abs=1e-6
    )


def test_two_stages(
    config: Callable[..., TuneConfig], student_files: tuple[str, Path], table: Path, tmp_path: Path
) -> None:
    second = hyper_parameters("realign", **{**SMALL, "text_tensors": 0})
    report = run(config("2sft", validation=read_table(table), realign_hyper=second))
    base, first, final = (_weights(path) for path in (student_files[1], tmp_path / "out/gpr/model.pth", report.model))
    assert report.model == tmp_path / "out/model.pth"
    assert all(torch.equal(base[name], first[name]) != name.startswith("visual.") for name in base)
    assert all(torch.equal(first[name], final[name]) for name in base if name.startswith("visual."))
    assert not torch.equal(first["text_projection"], final["text_projection"])
    described = json.loads((tmp_path / "out/report.json").read_text())
    assert (described["method"], described["first_stage"]["method"]) == ("2sft", "gpr")


def test_both_stages_are_checked_before_the_first_one_runs(
    config: Callable[..., TuneConfig], table: Path, tmp_path: Path
) -> None:
    for options, words in (({}, "column captions"), ({"pairs": tmp_path / "nowhere.jsonl"}, "nowhere.jsonl")):
        with pytest.raises((TuningError, SourceError), match=words):
            run(config("2sft", data=table.parent / "classes", **options))
        assert not (tmp_path / "out").exists()


def test_a_first_stage_that_was_trained_further_restarts_the_second_one_alone(
    config: Callable[..., TuneConfig], tmp_path: Path
) -> None:
    second = hyper_parameters("realign", **{**SMALL, "text_tensors": 0})
    shared: dict[str, Any] = {"metric": "last", "realign_hyper": second}
    run(config("2sft", **shared))
    assert not any(
        "kept for validation" in text for text in json.loads((tmp_path / "out/report.json").read_text())["notices"]
    )
    watcher = Watcher()
    report = run(config("2sft", hyper={"epochs": 3}, accept_changes=True, **shared), watcher)
    assert "goes on from step 8" in watcher.notes
    assert any("the starting weights are new" in note for note in watcher.notes)
    first = _weights(tmp_path / "out/gpr/model.pth")
    assert all(torch.equal(first[name], value) for name, value in _weights(report.model).items() if "visual" in name)
    anew = run(
        replace(
            config("realign", "anew", hyper={"text_tensors": 0}, metric="last"),
            checkpoint=tmp_path / "out/gpr/model.pth",
        )
    )
    one, other = _weights(report.model), _weights(anew.model)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_precision_checkpointing_and_patch_dropout(config: Callable[..., TuneConfig]) -> None:
    plain = {"epochs": 1, "patch_dropout": 0.0, "grad_checkpointing": False}

    def weights(output: str, **hyper: Any) -> dict[str, torch.Tensor]:
        return _weights(run(config("mcip", output, hyper={**plain, **hyper}, metric="last")).model)

    reference, repeated = weights("a"), weights("b")
    assert all(torch.equal(reference[name], repeated[name]) for name in reference)
    checkpointed = weights("c", grad_checkpointing=True)
    for name, value in reference.items():
        torch.testing.assert_close(checkpointed[name], value, rtol=1e-4, atol=1e-6)
    half, dropped = weights("d", precision="bf16"), weights("e", patch_dropout=0.5)
    distance = {
        key: sum(float((other[name] - reference[name]).abs().sum()) for name in reference)
        for key, other in (("half", half), ("dropped", dropped))
    }
    assert 0 < distance["half"] < distance["dropped"]
    assert half["visual.proj"].dtype == torch.float32
    if not torch.cuda.is_available():
        with pytest.raises(TuningError, match="--precision fp16 needs a GPU"):
            weights("f", precision="fp16")
        with pytest.raises(TuningError, match="torch sees no such GPU"):
            run(config("gpr", "g", device="cuda"))


def test_class_balanced_odd_term_and_loader_processes(config: Callable[..., TuneConfig]) -> None:
    watchers = [Watcher() for _ in range(3)]
    options: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({}, {}),
        ({"odd_term": 0.1}, {}),
        ({"class_balanced": True}, {"loaders": 1}),
    ]
    for number, (hyper, others) in enumerate(options):
        run(config("mcip", str(number), hyper={"epochs": 1, **hyper}, metric="last", **others), watchers[number])
    plain, odd, balanced = (watcher.losses for watcher in watchers)
    assert plain[1] < odd[1]  # the same batch, and a term more
    assert plain != balanced
    again = Watcher()
    run(config("mcip", "again", hyper={"epochs": 1, "class_balanced": True}, metric="last"), again)
    assert again.losses == balanced  # loader processes change nothing


def test_an_image_that_becomes_unreadable_in_epoch_three_costs_nothing_else(
    config: Callable[..., TuneConfig], tmp_path: Path
) -> None:
    table = write_archive(tmp_path / "archive")
    victim = tmp_path / "archive/classes/kind-2/1.jpg"
    watcher = Watcher({8: lambda: victim.write_bytes(b"torn")})
    report = run(config("gpr", data=table, hyper={"epochs": 4}, metric="last"), watcher)
    assert report.steps == 16
    assert report.unreadable == 1
    assert report.replaced == 2  # once in each of the two epochs left
    assert [note for note in watcher.notes if str(victim) in note and "another image takes its place" in note]
    assert all(math.isfinite(loss) for loss in watcher.losses.values())


@pytest.mark.parametrize("loaders", [0, 2])
def test_an_archive_that_goes_away_stops_the_run_with_its_state_saved(
    config: Callable[..., TuneConfig], tmp_path: Path, loaders: int
) -> None:
    table = write_archive(tmp_path / "archive")
    classes, hidden = tmp_path / "archive/classes", tmp_path / "archive/hidden"
    settings = config("gpr", data=table, hyper={"epochs": 5, "batch_size": 4}, metric="last", loaders=loaders)
    with pytest.raises(
        TuningError, match=r"^stopped at step \d+: 21 images one after the other .*still mounted"
    ) as caught:
        run(settings, Watcher({14: lambda: classes.rename(hidden)}))
    assert "Traceback" not in str(caught.value)
    state = load_state(tmp_path / "out")
    assert state is not None
    assert f"stopped at step {state.step}" in str(caught.value)
    assert 14 <= state.step < 20  # what loader processes had read before is used
    with pytest.raises(TuningError, match="48 of 48 images cannot be used.*still mounted"):
        run(settings)
    hidden.rename(classes)
    report = run(settings)
    assert (report.steps, report.unreadable) == (60, 0)
    undisturbed = run(config("gpr", "whole", data=table, hyper={"epochs": 5, "batch_size": 4}, metric="last"))
    one, other = _weights(report.model), _weights(undisturbed.model)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_loader_process_that_is_killed_is_an_error_that_names_the_knob(config: Callable[..., TuneConfig]) -> None:
    def kill() -> None:
        for child in multiprocessing.active_children():
            os.kill(child.pid, signal.SIGKILL)
            child.join()

    settings = config("gpr", hyper={"epochs": 9}, metric="last", loaders=2)
    with pytest.raises(TuningError, match=r"a process that reads images died .*fewer --loaders") as caught:
        run(settings, Watcher({3: kill}))
    assert "Traceback" not in str(caught.value)
    assert run(settings).steps == 36


def test_many_torn_images_stop_the_run_and_nothing_is_lost(config: Callable[..., TuneConfig], tmp_path: Path) -> None:
    table = write_archive(tmp_path / "archive")
    classes = tmp_path / "archive/classes"
    torn = sorted(classes.rglob("*.jpg"))[::2]
    settings = config("gpr", data=table, hyper={"epochs": 3}, metric="last")
    with ExitStack() as broken, pytest.raises(TuningError, match="more than 1.0% of the images cannot be used"):
        run(settings, Watcher({2: lambda: broken.enter_context(read_errors(torn))}))
    state = load_state(tmp_path / "out")
    assert state is not None
    assert 2 <= state.step < 12
    watcher = Watcher()
    report = run(settings, watcher)
    assert min(watcher.losses) == state.step + 1
    assert report.steps == 12


def test_a_read_error_while_vectors_are_stored_is_named_counted_and_tried_again(
    config: Callable[..., TuneConfig], tmp_path: Path
) -> None:
    table = write_archive(tmp_path / "archive")
    files = sorted((tmp_path / "archive/classes").rglob("*.jpg"))
    settings = config("realign", data=table, metric="last", hyper={"epochs": 1, "epoch_share": 1.0})
    with read_errors(files), pytest.raises(TuningError, match="48 of 48 images cannot be used"):
        run(settings)
    with read_errors(files[:5]), pytest.raises(TuningError, match=r"5 of 48 images .*--max-unreadable .*kind-0/0\.jpg"):
        run(settings)
    watcher = Watcher()
    with read_errors(files[:2]):
        report = run(settings, watcher)
    assert report.unreadable == 2
    assert [note for note in watcher.notes if str(files[1]) in note and "cannot be used" in note]
    assert "left out: 2 images that cannot be read" in report.notices
    again = run(config("realign", data=table, metric="last", restart=True, hyper={"epochs": 1, "epoch_share": 1.0}))
    assert again.unreadable == 0
    assert not any("left out" in notice for notice in again.notices)
    clean = run(config("realign", "clean", data=table, metric="last", hyper={"epochs": 1, "epoch_share": 1.0}))
    first, other = _weights(again.model), _weights(clean.model)
    for name, value in first.items():  # batches of another size differ in the last digit
        torch.testing.assert_close(other[name], value, rtol=1e-4, atol=1e-5)


def test_a_loss_that_is_not_finite_keeps_what_was_good(config: Callable[..., TuneConfig], tmp_path: Path) -> None:
    settings = config("gpr", hyper={"epochs": 3, "tests_per_epoch": 1}, save_every=2)

    def poison() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(settings, Watcher({5: poison}))
    good = _weights(tmp_path / "out/model.pth")
    state = tmp_path / "out/state.pt"
    kept = state.read_bytes()
    mad = config("gpr", hyper={"epochs": 3, "lr": 1e30, "grad_clip": 0.0}, save_every=1000, accept_changes=True)
    with pytest.raises(TuningError, match=r"stopped at step \d+: the (loss|gradient's norm) is (nan|inf)") as caught:
        run(mad)
    for words in ("Nothing is lost", "state.pt holds step 4", "model.pth", "--lr", "--accept-changes"):
        assert words in str(caught.value)
    assert state.read_bytes() == kept
    assert all(torch.isfinite(value).all() for value in _weights(tmp_path / "out/model.pth").values())
    assert not (tmp_path / "out/report.json").exists()
    sane = config("gpr", hyper={"epochs": 3, "lr": 1e-4}, accept_changes=True)
    watcher = Watcher()
    assert run(sane, watcher).steps == 9
    assert min(watcher.losses) == 5
    assert set(good) == set(_weights(tmp_path / "out/model.pth"))


def test_worse_weights_never_replace_the_best_whatever_was_saved_when(
    config: Callable[..., TuneConfig], tmp_path: Path
) -> None:
    """Stopped some steps after the best evaluation, far from the next periodic state; then settings that gain nothing."""
    hyper = {"epochs": 9, "tests_per_epoch": 99, "patch_dropout": 0.0, "lr": 3e-3}

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(config("gpr", hyper=hyper, save_every=1000), Watcher({12: stop}))
    state = load_state(tmp_path / "out")
    assert state is not None
    assert state.best is not None
    assert state.best == max(value for _, value in state.history)
    assert state.best_step == state.step  # saved with the best, not by the interval
    best = _weights(tmp_path / "out/model.pth")
    (tmp_path / "out/model.pth").unlink()  # as after a kill between the two files
    awful = {**hyper, "lr": 1.0, "proxy_lr": 1.0, "grad_clip": 0.0}
    report = run(config("gpr", hyper=awful, save_every=1000, accept_changes=True))
    assert all(value < state.best for step, value in report.history if step > state.step)
    assert (report.best, report.best_step) == (state.best, state.step)
    kept = _weights(report.model)
    assert all(torch.equal(best[name], kept[name]) for name in best)


@pytest.mark.parametrize("metric", ["image-map", "last"])
def test_without_an_interval_the_state_is_saved_at_evaluations(
    config: Callable[..., TuneConfig], tmp_path: Path, metric: Any
) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    hyper = {"tests_per_epoch": 2, "lr": 1e-12, "proxy_lr": 1e-12, "lr_min": 0.0}
    settings = config("gpr", metric=metric, hyper=hyper, save_every=0, hold_out=0.3)
    with pytest.raises(KeyboardInterrupt):
        run(settings, Watcher({5: stop}))
    state = load_state(tmp_path / "out")
    assert state is not None
    assert state.step == 4


def test_weights_that_diverge_at_an_evaluation_are_told_as_such(
    config: Callable[..., TuneConfig], student_files: tuple[str, Path], tmp_path: Path
) -> None:
    model = tmp_path / "out/model.pth"
    model.parent.mkdir()
    model.write_bytes(b"of an earlier run")
    with pytest.raises(TuningError, match=r"stopped at step \d+: .*not finite.*no weights were written yet") as caught:
        run(config("gpr", hyper={"lr": 1e30, "tests_per_epoch": 99}))
    assert "another --lr" in str(caught.value)
    assert model.read_bytes() == b"of an earlier run"
    weights = _weights(student_files[1])
    torch.save({**weights, "visual.proj": weights["visual.proj"] * 1e30}, tmp_path / "vast.pth")
    for method in ("gpr", "realign"):
        with pytest.raises(TuningError, match="not finite"):
            run(replace(config(method, method), checkpoint=tmp_path / "vast.pth"))


def test_the_same_validation_images_count_from_the_first_evaluation_on(
    config: Callable[..., TuneConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exam, "_KEPT_BYTES", 0)  # as with a validation set too large to keep: read at every evaluation
    validation = read_table(write_archive(tmp_path / "held"))
    with read_errors(validation.paths), pytest.raises(TuningError, match="48 of 48 validation images cannot be used"):
        run(config("gpr", validation=validation))
    hyper = {"epochs": 2, "tests_per_epoch": 99}
    settings = config("gpr", validation=validation, hyper=hyper)
    watcher = Watcher()
    with read_errors(validation.paths[:2]), ExitStack() as more:
        watcher.at[3] = lambda: more.enter_context(read_errors(validation.paths[7:8]))
        with pytest.raises(TuningError, match=r"stopped at step 3: 1 validation images could be read before") as caught:
            run(settings, watcher)
    assert "kind-1/1.jpg" in str(caught.value)
    assert [note for note in watcher.notes if "kind-0/1.jpg" in note]
    state = load_state(tmp_path / "out")
    assert state is not None
    assert (state.step, len(state.history)) == (3, 2)
    report = run(settings)
    assert [step for step, _ in report.history] == [1, 2, 3, 4, 5, 6, 7, 8]  # step 3 is evaluated after all
    assert report.unreadable == 2
    assert "2 validation images could not be read and did not count" in report.notices
    # The files are back, and still do not count: the figures are those of the other 46.
    fewer = validation.where(np.arange(48) >= 2)
    assert report.best == run(config("gpr", "fewer", validation=fewer, hyper=hyper)).best


def test_a_run_with_fewer_steps_than_were_done_is_refused_and_another_metric_is_measured(
    config: Callable[..., TuneConfig], tmp_path: Path
) -> None:
    run(config("gpr", metric="last"))
    with pytest.raises(TuningError, match=r"holds step 8, and a run with these settings has 4: ask for more --epochs"):
        run(config("gpr", metric="last", hyper={"epochs": 1}, accept_changes=True))
    (tmp_path / "out/model.pth").unlink()
    validation = config("gpr").data
    report = run(config("gpr", metric="last", validation=validation))
    assert report.model.is_file()
    report = run(config("gpr", metric="image-map", validation=validation, accept_changes=True))
    assert (report.best_step, [step for step, _ in report.history]) == (8, [8])
    report.model.unlink()
    watcher = Watcher()
    again = run(config("gpr", metric="image-map", validation=validation), watcher)
    assert (again.best, again.best_step) == (report.best, 8)
    assert report.model.is_file()


def test_a_finished_or_foreign_output_is_not_trained_over(
    config: Callable[..., TuneConfig], student_files: tuple[str, Path], tmp_path: Path
) -> None:
    first = run(config("gpr", metric="last"))
    watcher = Watcher()
    again = run(config("gpr", metric="last"), watcher)
    assert not watcher.losses
    assert (again.steps, again.best_step) == (first.steps, first.best_step)
    with pytest.raises(TuningError, match=r"other settings \(--margin\)") as caught:
        run(config("gpr", metric="last", hyper={"margin": 0.2}))
    assert "--accept-changes" in str(caught.value)
    for method, words in (("mcip", "method"), ("realign", "method")):
        with pytest.raises(TuningError, match=words) as caught:
            run(config(method, metric="last", accept_changes=True))
        assert "--accept-changes" not in str(caught.value)
    report = run(config("gpr", metric="last", hyper={"margin": 0.2}, restart=True), watcher)
    assert min(watcher.losses) == 1
    assert report.steps == first.steps


def test_a_run_knows_its_images_wherever_they_lie_and_however_they_are_named(
    config: Callable[..., TuneConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Named relatively; moved as a whole; then one picture is replaced; then one class is gone."""
    table = write_archive(tmp_path / "archive")

    def settings(data: Path, **options: Any) -> TuneConfig:
        return config("gpr", data=data, hyper={"epochs": 1}, hold_out=0.3, **options)

    first = run(settings(table))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "archive").rename(tmp_path / "moved")
    for name in (Path("moved/table.jsonl"), tmp_path / "moved/table.jsonl"):
        watcher = Watcher()
        assert run(settings(name), watcher).best == first.best
        assert not watcher.losses
    table = tmp_path / "moved/table.jsonl"
    files = sorted((tmp_path / "moved/classes").rglob("*.jpg"))
    for path in files:
        path.write_bytes(files[0].read_bytes())
    with pytest.raises(TuningError, match=r"sizes or times of training images.*--accept-changes"):
        run(settings(table))
    assert run(settings(table, accept_changes=True)).steps == first.steps
    lines = table.read_text().splitlines(keepends=True)
    table.write_text("".join(line for line in lines if "kind-0" not in line))
    for accepted in (False, True):
        with pytest.raises(TuningError, match="training data") as caught:
            run(settings(table, accept_changes=accepted))
        assert "--accept-changes" not in str(caught.value)
        assert "--restart" in str(caught.value)


def test_early_stop_and_no_gain_are_told(config: Callable[..., TuneConfig]) -> None:
    hopeless = {
        "lr": 1e-12,
        "proxy_lr": 1e-12,
        "lr_min": 0.0,
        "tests_per_epoch": 99,
        "patience": 3,
        "patch_dropout": 0.0,
    }
    report: TuneReport = run(config("gpr", hyper={"epochs": 9, **hopeless}))
    assert report.stopped_early
    assert (report.best_step, report.steps) == (1, 4)
    assert any(notice.startswith("no gain") for notice in report.notices)
    assert run(config("gpr", hyper={"epochs": 9, **hopeless})).steps == 4


def test_memory_that_runs_out_names_the_knob() -> None:
    hyper = hyper_parameters("mcip", batch_size=64, grad_checkpointing=False, precision="fp32")
    with pytest.raises(TuningError) as caught, helpful_memory_errors(hyper):
        torch.empty(1 << 56)
    for words in (
        "out of memory",
        "--batch-size below 64",
        "--grad-checkpointing",
        "--precision bf16",
        "--patch-dropout",
    ):
        assert words in str(caught.value)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), helpful_memory_errors(hyper):
        torch.ones(2, 3) @ torch.ones(2, 3)


def test_random_weights_are_those_of_the_seed(student_files: tuple[str, Path], table: Path, tmp_path: Path) -> None:
    made = []
    for number, seed in enumerate((1, 1, 2)):
        hyper = hyper_parameters("contrastive", **{**SMALL, "epochs": 1, "seed": seed, "warmup_steps": 2})
        before = torch.get_rng_state()
        report = run(
            TuneConfig(method="contrastive", model=student_files[0], data=table, output=tmp_path / str(number), hyper=hyper,
                       metric="last", tensorboard=False)
        )  # fmt: skip
        assert torch.equal(torch.get_rng_state(), before)  # the caller's random numbers are its own
        made.append(_weights(report.model))
    assert all(torch.equal(made[0][name], made[1][name]) for name in made[0])
    assert not torch.equal(made[0]["visual.proj"], made[2]["visual.proj"])
