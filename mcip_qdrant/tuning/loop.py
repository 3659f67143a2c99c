"""Steps, evaluations and saved states, from wherever the last start stopped to the end."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from mcip_qdrant.errors import TuningError
from mcip_qdrant.tuning.advice import helpful_memory_errors
from mcip_qdrant.tuning.batches import Batch, Batches
from mcip_qdrant.tuning.exam import Exam
from mcip_qdrant.tuning.files import NAMED, TOLERATED
from mcip_qdrant.tuning.hyper import HyperParameters
from mcip_qdrant.tuning.listener import Listener
from mcip_qdrant.tuning.optimisation import set_learning_rate
from mcip_qdrant.tuning.pictures import Failure
from mcip_qdrant.tuning.processes import Processes
from mcip_qdrant.tuning.state import STATE_FILE, State, save_tensors
from mcip_qdrant.tuning.trainees import Trainee

MODEL_FILE: Final = "model.pth"
# GradScaler halves its factor at each overflow; from 65,536 it is at its end after this many in a row.
_OVERFLOWS: Final = 30
_NOT_FINITE: Final = (
    "Likely: a learning rate too high, or fp16 where bf16 is needed. Start the same command again with another --lr, "
    "--grad-clip or --precision and --accept-changes"
)


@dataclass(slots=True)
class Loop:
    """One training run in motion.

    `exam` measures the model as it is, on the first process; None keeps the newest weights instead of the best.
    """

    trainee: Trainee
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    autocast: Callable[[], AbstractContextManager[Any]]
    batches: Batches
    hyper: HyperParameters
    together: Processes
    state: State
    folder: Path
    exam: Exam | None
    save_every: int
    max_unreadable: float
    listener: Listener
    _drawn_here: int = 0
    _replaced_here: int = 0
    _saved_step: int | None = None

    def train(self) -> bool:
        """Run to the end; whether it stopped early for lack of gain.

        Raises:
            TuningError: a loss that is not finite, too many unreadable images, or too little memory. The state on disk
                is then an older one that was in order.
        """
        self._restore()
        steps, every = self.batches.order.steps, self._test_every()
        if self.state.step > steps:
            raise TuningError(
                f"{self.folder / STATE_FILE} holds step {self.state.step}, and a run with these settings has {steps}: ask for "
                "more --epochs, or --restart to throw it away"
            )
        self.listener.begin("train", steps, self.state.step)
        if self.state.step == 0 and self.exam is not None and self.state.start is None:
            self.state.start = self._measure(self.exam)
            self.listener.values(0, {"metric": self.state.start})
        elif self.state.step > self.state.graded_step and self._to_evaluate(steps, every):
            # An evaluation that failed, or one by a metric that was not asked for then.
            self._keep(steps, every)
        module = self.together.wrap(self.trainee)
        self.trainee.train()
        overflows = 0
        for step, batch in self._batches():
            if self._stops_early():
                self._save()
                return True
            with helpful_memory_errors(self.hyper):
                values, stepped = self._step(module, step, steps, batch)
            overflows = 0 if stepped else overflows + 1
            if overflows > _OVERFLOWS:
                raise self._broken(step, "the gradients overflow fp16 whatever they are scaled by")
            self.state.step = step + 1
            self.listener.values(step + 1, values)
            self.listener.advance(1)
            self._keep(steps, every)
        return self._stops_early() and self.state.step < steps

    def _to_evaluate(self, steps: int, every: int) -> bool:
        return self.state.step == steps or self.state.step % every == 0

    def _keep(self, steps: int, every: int) -> None:
        """Evaluate and save what is due after a step."""
        step = self.state.step
        last = step == steps
        evaluated = self._to_evaluate(steps, every)
        better = evaluated and self._evaluate()
        due = step % self.save_every == 0 if self.save_every else evaluated
        # The state first: it holds the best weights too, so a kill before the second file loses nothing (see _restore), and
        # a run that goes on from any state knows how good the weights in the model file are.
        if better or last or due:
            self._save()
        if better:
            self._write_model()

    def _batches(self) -> Iterator[tuple[int, Batch]]:
        return self.batches.starting_at(self.state.step) if self.state.step < self.batches.order.steps else iter(())

    def _test_every(self) -> int:
        if self.exam is None:
            return self.batches.order.steps_per_epoch
        return max(1, math.ceil(self.batches.order.steps_per_epoch / self.hyper.tests_per_epoch))

    def _stops_early(self) -> bool:
        return bool(self.hyper.patience) and self.state.without_gain >= self.hyper.patience

    def _step(self, module: torch.nn.Module, step: int, steps: int, batch: Batch) -> tuple[dict[str, float], bool]:
        self._account(step, batch)
        # Whatever the model draws (patch dropout) depends on seed, step and process alone, so a resumed run draws the same.
        torch.manual_seed(int(np.random.SeedSequence([self.hyper.seed, step, self.together.rank]).generate_state(1)[0]))
        rate = set_learning_rate(self.optimizer, step, steps, self.hyper)
        self.optimizer.zero_grad(set_to_none=True)
        with self.autocast():
            made: dict[str, torch.Tensor] = module(**batch.tensors)
        values = {name: self.together.mean(value) for name, value in made.items()}
        if not math.isfinite(values["loss"]):
            raise self._broken(step, f"the loss is {values['loss']}")
        self.scaler.scale(made["loss"]).backward()  # type: ignore[no-untyped-call]
        self.scaler.unscale_(self.optimizer)
        parameters = [value for group in self.optimizer.param_groups for value in group["params"]]
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, self.hyper.grad_clip or math.inf))
        finite = math.isfinite(norm)
        if not finite and not self.scaler.is_enabled():
            raise self._broken(step, f"the gradient's norm is {norm}")
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.trainee.after_step()
        return {**values, "lr": rate, "gradient_norm": norm}, finite

    def _account(self, step: int, batch: Batch) -> None:
        if not batch.lost:
            self._note_failures(batch.failures)
        too_many = batch.lost or self._replaced_here > max(TOLERATED, self.max_unreadable * self._drawn_here)
        # Together, or one process would wait for ever for the others.
        if self.together.mean(torch.tensor(float(too_many), device=self.together.device)) == 0:
            return
        self._save()
        what = f"more than {self.max_unreadable:.1%} of the images cannot be used ({len(self.state.unreadable)} files"
        last = next(reversed(self.state.unreadable.items()), ("images of another process", "see its output"))
        if batch.lost:
            what = f"{len(batch.failures)} images one after the other cannot be read (is the archive still mounted?"
            last = batch.failures[-1].path, batch.failures[-1].reason
        raise TuningError(
            f"stopped at step {step}: {what}; the last: {last[0]}: {last[1]}). Nothing is lost: the same command goes on when they "
            f"can be read again{'' if batch.lost else ', or with a higher --max-unreadable'}"
        )

    def _note_failures(self, failures: Sequence[Failure]) -> None:
        for failure in failures:
            if failure.path not in self.state.unreadable:
                self.listener.note(f"{failure.path} cannot be used ({failure.reason}); another image takes its place")
            self.state.unreadable[failure.path] = failure.reason
        # Counted since this start: after a pause in which the files came back, the past must not stop the run again.
        self.state.replaced += len(failures)
        self._replaced_here += len(failures)
        self._drawn_here += self.batches.order.batch_size

    def _broken(self, step: int, what: str) -> TuningError:
        # Not saved: weights on the way to infinity are often broken for some steps before it shows.
        model, saved = self.folder / MODEL_FILE, self._saved_step
        state = "no state was saved yet" if saved is None else f"{self.folder / STATE_FILE} holds step {saved}"
        # A model file of an earlier run may be there all the same.
        rest = f"the best weights so far are in {model}" if self.state.best_step else "no weights were written yet"
        return TuningError(f"stopped at step {step}: {what}. Nothing is lost: {state}; {rest}. {_NOT_FINITE}")

    def _measure(self, exam: Exam) -> float:
        failure = grade = None
        if self.together.first:
            try:
                with helpful_memory_errors(self.hyper):
                    grade = exam.grade(self.state.left_out)
            except TuningError as exc:
                failure = str(exc)
        failure, grade = self.together.share((failure, grade))
        if grade is None:
            if self.state.step:
                self._save()
                failure = (
                    f"stopped at step {self.state.step}: {failure}. Nothing is lost: the same command goes on from here"
                )
            raise TuningError(failure)
        if not math.isfinite(grade.value) and self.state.step == 0:
            raise TuningError(
                "the starting weights give vectors that are not finite: the checkpoint is broken, or --precision too low for it"
            )
        if not math.isfinite(grade.value):
            raise self._broken(self.state.step, "the model's vectors of the validation data are not finite")
        if self.state.left_out is None and grade.left_out:
            self.listener.note(f"{len(grade.left_out)} validation images cannot be read and do not count in this run:")
            for row in grade.left_out[:NAMED]:
                self.listener.note(exam.why(row))
        self.state.left_out = grade.left_out
        return float(grade.value)

    def _evaluate(self) -> bool:
        """Whether the weights are the ones to keep."""
        state = self.state
        if self.exam is None:
            state.best_step = state.graded_step = state.step
            return True
        metric = self._measure(self.exam)
        state.graded_step = state.step
        state.history.append([float(state.step), metric])
        self.listener.values(state.step, {"metric": metric})
        if state.best is None or metric > state.best:
            state.best, state.best_step, state.without_gain = metric, state.step, 0
            return True
        state.without_gain += 1
        return False

    def _write_model(self) -> None:
        if self.together.first:
            weights = {name: value.detach().cpu() for name, value in self.trainee.model.state_dict().items()}
            save_tensors(weights, self.folder / MODEL_FILE)

    def _save(self) -> None:
        if self.together.first:
            self.state.moving = {name: value.detach().cpu() for name, value in self.trainee.moving()}
            self.state.optimizer = self.optimizer.state_dict()
            self.state.scaler = self.scaler.state_dict()
            self.state.save(self.folder)
            self._saved_step = self.state.step
            self.state.moving, self.state.optimizer = {}, {}

    def _restore(self) -> None:
        if not self.state.moving:
            return
        self._saved_step = self.state.step
        with torch.no_grad():
            for name, value in self.trainee.moving():
                value.copy_(self.state.moving[name])
        # The settings of this start, not those that were saved: they are equal unless a person changed them.
        settings = [{key: group[key] for key in group if key != "params"} for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(self.state.optimizer)
        for group, own in zip(self.optimizer.param_groups, settings, strict=True):
            group.update(own)
        if self.state.scaler:
            self.scaler.load_state_dict(self.state.scaler)
        self.state.moving, self.state.optimizer = {}, {}
        if self.state.best_step == self.state.step:
            self._write_model()
        elif self.state.best_step and not self.together.share((self.folder / MODEL_FILE).exists()):
            self.listener.note(f"{self.folder / MODEL_FILE} is gone: the best weights are sought among those to come")
            self.state.forget_best()
