"""Whether a saved state belongs to the run that is asked for."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Final

from mcip_qdrant.errors import TuningError
from mcip_qdrant.evaluation.datasets import LabelledImages
from mcip_qdrant.tuning.config import TuneConfig
from mcip_qdrant.tuning.files import file_stamps, names_below
from mcip_qdrant.tuning.listener import Listener
from mcip_qdrant.tuning.material import Material
from mcip_qdrant.tuning.processes import Processes
from mcip_qdrant.tuning.state import STATE_FILE, State, load_state
from mcip_qdrant.tuning.stored import digest
from mcip_qdrant.tuning.tensorboard import LOG_FOLDER

# Changing these leaves saved tensors without a place to go; class proxies belong to the classes of the training data.
_FIXED: Final = {"method", "start", "--text-tensors"}
_FIXED_WITH_CLASSES: Final = _FIXED | {"training data"}


def state_of_run(
    config: TuneConfig, material: Material, stamps: list[str], identity: str, together: Processes, listener: Listener
) -> State:
    """The saved state of this very run, or a new one.

    Args:
        config: what is asked for.
        material: its data.
        stamps: size and time of its training images.
        identity: digest of model and starting weights.
        together: every process reads; the first one removes what `restart` throws away.
        listener: told where the run goes on.

    Raises:
        TuningError: the output holds the state of a run with other data, weights or settings, or a damaged one.
    """
    validation = material.validation
    fingerprint = {
        "method": config.method,
        "metric": config.chosen_metric,
        "start": identity,
        "training data": _data_digest(material.training),
        "sizes or times of training images": digest(stamps),
        "validation": None
        if validation is None
        else digest([_data_digest(validation), *file_stamps(validation.paths)]),
        "processes": together.world_size,
        **{f"--{name.replace('_', '-')}": value for name, value in asdict(config.chosen_hyper).items()},
    }
    saved = None if config.restart else load_state(config.output)
    if saved is not None and config.restart_if_start_differs and saved.fingerprint["start"] != identity:
        listener.note(f"the starting weights are new: what {config.output / STATE_FILE} holds is thrown away")
        saved = None
    # Nobody may look for a state that is going to be removed.
    together.wait()
    if saved is None:
        if together.first:
            for old in (config.output / STATE_FILE, *(config.output / LOG_FOLDER).glob("events.*")):
                old.unlink(missing_ok=True)
        return State(fingerprint)
    different = [name for name, value in fingerprint.items() if saved.fingerprint.get(name) != value]
    fixed = (_FIXED_WITH_CLASSES if config.method in {"gpr", "mcip"} else _FIXED) & set(different)
    if fixed or (different and not config.accept_changes):
        raise TuningError(
            f"{config.output / STATE_FILE} is of a run with other settings ({', '.join(different)}). Choose another --output, "
            f"or --restart to throw it away{'' if fixed else ', or --accept-changes to go on from it with the new ones'}"
        )
    listener.note(f"goes on from step {saved.step}")
    if {"metric", "validation"} & set(different):
        saved.forget_best()
        saved.left_out = None
    return replace(saved, fingerprint=fingerprint)


def _data_digest(images: LabelledImages) -> str:
    captions = images.captions or []
    return digest(
        [
            f"{len(images)} {len(images.names)}",
            *names_below(images.paths),
            *map(str, images.labels.tolist()),
            *images.names,
            *(json.dumps(own) for own in captions),
        ]
    )
