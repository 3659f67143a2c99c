"""Options that every `mcip-qdrant eval` protocol takes, and the models that they name."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from mcip_qdrant.cli.options import ANY_PATH, device_option, json_option, precision_option
from mcip_qdrant.evaluation.preparation import PREPARATIONS, Preparation
from mcip_qdrant.extras import needs_extra
from mcip_qdrant.manifest import Precision

if TYPE_CHECKING:
    from mcip_qdrant.evaluation.model import Model

_F = TypeVar("_F", bound=Callable[..., Any])


class FiniteRange(click.FloatRange):
    """A range of numbers that are numbers: click's own lets `nan` through, which lies in no range."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number.

        Raises:
            click.BadParameter: not a number, infinite, or out of range.
        """
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


@dataclass(frozen=True, slots=True)
class EvalOptions:
    """What the user chose, the same for every protocol."""

    bundle: Path | None
    model: str | None
    checkpoint: Path | None
    tokenizer: Path | None
    quick_gelu: bool | None
    base: str | None
    compare: tuple[str, str] | None
    preparation: Preparation
    cache: Path | None
    no_cache: bool
    html: Path | None
    as_json: bool
    device: str
    precision: Precision | None

    @property
    def cache_folder(self) -> Path | None:
        """Where embeddings are kept, or None."""
        if self.no_cache:
            return None
        if self.cache is not None:
            return self.cache
        with needs_extra("eval", "eval"):
            from platformdirs import user_cache_path
        return user_cache_path("mcip-qdrant") / "embeddings"

    def models(self) -> list[Model]:
        """Open the one or two models to evaluate.

        Raises:
            click.UsageError: not exactly one way of naming a model.
        """
        if self.compare is not None:
            if self.model is not None or self.checkpoint is not None:
                raise click.UsageError("--compare names both models; leave out --model and --checkpoint")
            return [self._named(one) for one in self.compare]
        if self.checkpoint is not None or self.model is not None:
            if self.checkpoint is None or self.model is None:
                raise click.UsageError("a checkpoint needs both --model NAME and --checkpoint FILE")
            return [self._checkpoint(self.model, self.checkpoint)]
        if self.bundle is None:
            raise click.UsageError(
                "say what to evaluate: --bundle DIR, or --model NAME --checkpoint FILE, or --compare A B"
            )
        return [self._bundle(self.bundle)]

    def _named(self, name: str) -> Model:
        if Path(name).is_dir() or "=" not in name:
            return self._bundle(Path(name))
        # Folders on either side may have a "=" in their names as well.
        parts = name.split("=")
        splits = [("=".join(parts[:place]), Path("=".join(parts[place:]))) for place in range(1, len(parts))]
        model, checkpoint = next((split for split in splits if split[1].is_file()), splits[0])
        return self._checkpoint(model, checkpoint)

    def _bundle(self, path: Path) -> Model:
        from mcip_qdrant.bundle import Bundle
        from mcip_qdrant.encoder import EncoderSettings
        from mcip_qdrant.evaluation.model import BundleModel
        from mcip_qdrant.session import Device

        return BundleModel(
            Bundle.open(path), EncoderSettings(device=Device.parse(self.device), precision=self.precision)
        )

    def _checkpoint(self, model: str, checkpoint: Path) -> Model:
        from mcip_qdrant.session import Device

        if self.precision is not None and self.compare is None:
            raise click.UsageError("--precision chooses a bundle's graphs; a checkpoint runs in float32")
        click.echo(f"loading torch and {checkpoint.name} …", err=True)
        with needs_extra("eval,export", "evaluating a checkpoint"):
            from mcip_qdrant.evaluation.checkpoint import CheckpointModel
        return CheckpointModel(
            model,
            checkpoint,
            device=Device.parse(self.device),
            tokenizer=self.tokenizer,
            quick_gelu=self.quick_gelu,
            base=self.base,
        )


def _positive(_context: click.Context, _parameter: click.Parameter, value: str) -> tuple[int, ...]:
    try:
        numbers = tuple(dict.fromkeys(int(part) for part in value.split(",")))
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < 1:
        raise click.BadParameter("a comma-separated list of numbers from 1 on")
    return numbers


def ks_option(default: str) -> Callable[[_F], _F]:
    """`--k`, a list of numbers, as `ks`."""
    return click.option("--k", "ks", default=default, show_default=True, callback=_positive, help="Values of k.")


_OPTIONS = (
    click.option(
        "--bundle",
        envvar="MCIP_QDRANT_BUNDLE",
        show_envvar=True,
        type=ANY_PATH,
        help="Evaluate a bundle (ONNX, no torch).",
    ),
    click.option("--model", metavar="NAME", help="Evaluate a checkpoint: its architecture, as `export` takes it."),
    click.option("--checkpoint", type=ANY_PATH, help="Evaluate a checkpoint: its weights (needs the extra export)."),
    click.option("--tokenizer", type=ANY_PATH, help="Folder with the checkpoint's tokenizer files, as for `export`."),
    click.option("--quick-gelu/--no-quick-gelu", default=None, help="Activation of the checkpoint, as for `export`."),
    click.option("--base", metavar="TAG", help="Tag that the checkpoint was fine-tuned from, as for `export`."),
    click.option(
        "--compare",
        nargs=2,
        metavar="A B",
        default=None,
        help="Two models side by side: each a bundle folder, or MODEL=CHECKPOINT.",
    ),
    click.option(
        "--preparation",
        type=click.Choice(PREPARATIONS),
        default=PREPARATIONS[0],
        show_default=True,
        help="How images are prepared: the model's own transform, or the squash and crop of the authors' retrieval code.",
    ),
    click.option(
        "--cache",
        envvar="MCIP_QDRANT_CACHE",
        show_envvar=True,
        type=ANY_PATH,
        help="Folder of embeddings that are kept for the next time. Default: ~/.cache/mcip-qdrant/embeddings.",
    ),
    click.option("--no-cache", is_flag=True, help="Embed everything anew, and keep nothing."),
    click.option("--html", type=ANY_PATH, help="Write a page with the table and the worst queries as pictures."),
    json_option,
    device_option,
    precision_option,
)


def eval_options(command: _F) -> Callable[..., Any]:
    """Give a command all shared options, in one `options` argument."""

    @wraps(command)
    def with_options(**arguments: Any) -> Any:
        chosen = {field.name: arguments.pop(field.name) for field in fields(EvalOptions)}
        return command(options=EvalOptions(**chosen), **arguments)

    decorated: Callable[..., Any] = with_options
    for option in reversed(_OPTIONS):
        decorated = option(decorated)
    return decorated
