"""Entry point: the command group, and one place that turns errors into messages and exit codes."""

from __future__ import annotations

import logging
import os
import signal
import sys
import warnings
from importlib.metadata import version

import click

from mcip_qdrant.cli.adopt import adopt_command
from mcip_qdrant.cli.eval import eval_group
from mcip_qdrant.cli.export import export_command
from mcip_qdrant.cli.ingest import ingest_command
from mcip_qdrant.cli.inspect import inspect_command
from mcip_qdrant.cli.runs import cancel_command, failures_command, retry_command, status_command
from mcip_qdrant.cli.search import search_command
from mcip_qdrant.cli.serve import serve_command
from mcip_qdrant.cli.streams import prepare_streams
from mcip_qdrant.cli.tune import tune_group
from mcip_qdrant.cli.verify import verify_command
from mcip_qdrant.cli.worker import worker_command
from mcip_qdrant.errors import McipError
from mcip_qdrant.exit_codes import INTERRUPTED

_EPILOG = """\b
Typical use:
  mcip-qdrant export --model mcip-vit-l-14-336 --checkpoint MCIP.pth --output bundle
  mcip-qdrant ingest photos --bundle bundle
  mcip-qdrant search --bundle bundle --text "a red car in the snow" --sheet hits.png

\b
Exit codes: 0 all in; 1 could not be done; 2 usage; 3 done, some images failed;
4 configuration refused (wrong bundle, damaged bundle, device not active); 130 interrupted.

\b
Environment: MCIP_QDRANT_BUNDLE, MCIP_QDRANT_URL, MCIP_QDRANT_COLLECTION, MCIP_QDRANT_DEVICE, MCIP_QDRANT_BROKER;
secrets, which have no flags on purpose: MCIP_QDRANT_API_KEY or MCIP_QDRANT_API_KEY_FILE,
MCIP_QDRANT_SERVE_KEY or MCIP_QDRANT_SERVE_KEY_FILE,
MCIP_QDRANT_BROKER_PASSWORD or MCIP_QDRANT_BROKER_PASSWORD_FILE.
"""


@click.group(epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(version("mcip-qdrant"), prog_name="mcip-qdrant")
@click.option("-v", "--verbose", is_flag=True, help="Say more on stderr, and show tracebacks of errors.")
def cli(verbose: bool) -> None:
    """Search a pile of images by words and by pictures: checkpoint -> ONNX bundle -> Qdrant."""
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING,
        format="%(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    logging.getLogger("httpx").setLevel(logging.WARNING)


for _command in (
    *(export_command, verify_command, inspect_command, ingest_command, search_command, serve_command, adopt_command),
    *(worker_command, status_command, failures_command, retry_command, cancel_command, eval_group, tune_group),
):
    cli.add_command(_command)


def main() -> None:
    """Run the command line and exit with one of the documented codes."""
    _prepare_process()
    try:
        code = cli.main(prog_name="mcip-qdrant", standalone_mode=False)
    except click.ClickException as exc:
        exc.show()
        sys.exit(exc.exit_code)
    except (KeyboardInterrupt, click.Abort):
        # An impatient second Ctrl-C must not turn the exit code into that of a crash.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        # Where the signal struck inside an executed string, as namedtuples are made of at import, Python remembers it until it has
        # executed another one, and would end by the signal instead of with our code.
        exec("")  # noqa: S102
        click.echo("interrupted", err=True)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        # The reader of our output (head, less) went away: that is its right.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (McipError, OSError) as exc:
        # OSError: what only this machine can cause anywhere, such as a disk that is full while failures are written.
        if "-v" in sys.argv[1:2] or "--verbose" in sys.argv[1:2]:
            logging.getLogger(__name__).exception("traceback of the error below")
        click.echo(f"mcip-qdrant: {exc}", err=True)
        sys.exit(exc.exit_code if isinstance(exc, McipError) else 1)
    sys.exit(code if isinstance(code, int) else 0)


def _prepare_process() -> None:
    """Settings of the whole process; a library must not make them, its program may."""
    # SIGTERM from a supervisor takes the same road as Ctrl-C, so that half-written files are cleaned up.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    prepare_streams()
