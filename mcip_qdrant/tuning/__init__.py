"""Making such a model: the paper's two fine-tuning methods, and plain contrastive training.

Names are resolved at first use: describing a run needs no torch, running it does.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mcip_qdrant.tuning.config import TuneConfig
    from mcip_qdrant.tuning.hyper import HyperParameters, hyper_parameters
    from mcip_qdrant.tuning.listener import Listener
    from mcip_qdrant.tuning.state import TuneReport
    from mcip_qdrant.tuning.train import run

_HOME = {
    "HyperParameters": "hyper",
    "Listener": "listener",
    "TuneConfig": "config",
    "TuneReport": "state",
    "hyper_parameters": "hyper",
    "run": "train",
}

__all__ = ["HyperParameters", "Listener", "TuneConfig", "TuneReport", "hyper_parameters", "run"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value
