"""`mcip-qdrant serve`."""

from __future__ import annotations

import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from mcip_qdrant.cli.options import (
    ANY_PATH,
    connect,
    device_option,
    precision_option,
    say_device,
    source_root_option,
    store_options,
)
from mcip_qdrant.credentials import secret
from mcip_qdrant.extras import needs_extra
from mcip_qdrant.manifest import Precision

if TYPE_CHECKING:
    from mcip_qdrant.store import Store


@click.command("serve")
@click.option(
    "--bundle",
    "bundle_path",
    envvar="MCIP_QDRANT_BUNDLE",
    show_envvar=True,
    type=ANY_PATH,
    help="Bundle directory made by `mcip-qdrant export`. Needed, except with --demo.",
)
@store_options
@click.option("--embeddings-only", is_flag=True, help="No collection: /v1/embeddings and /v1/models alone.")
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="Address to listen on; others than this need a key."
)
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 takes a free one.")
@source_root_option("For thumbnails: where an archive lies on this machine; without it, hits have names only")
@click.option(
    "--allowed-host",
    "allowed_hosts",
    multiple=True,
    metavar="NAME",
    help="A name that a proxy in front of this server goes by. Repeatable.",
)
@click.option(
    "--demo", is_flag=True, help="Serve the drawn pictures of `make demo` with their small model, and open the page."
)
@device_option
@precision_option
@click.pass_context
def serve_command(
    context: click.Context,
    bundle_path: Path | None,
    location: str,
    collection: str,
    embeddings_only: bool,
    host: str,
    port: int,
    source_roots: tuple[str, ...],
    allowed_hosts: tuple[str, ...],
    demo: bool,
    device: str,
    precision: Precision | None,
) -> None:
    """Serve embeddings, search and a page to look at an archive, over HTTP.

    \b
    GET  /               a page: words, a picture, or both; more like this; filters
    POST /v1/embeddings  as OpenAI's; pictures as infinity and vLLM take them
    POST /v1/search      text, image, like, mix or vector -> hits
    GET  /docs           every route, with examples        also: /v1/models, /health, /metrics

    Without a collection there are embeddings only. Listens on this machine only, unless --host says otherwise; then
    MCIP_QDRANT_SERVE_KEY or MCIP_QDRANT_SERVE_KEY_FILE must hold an API key, which clients send as Authorization: Bearer KEY.

    \b
    Examples:
      mcip-qdrant serve --bundle bundle --source-root photos
      mcip-qdrant serve --demo
      MCIP_QDRANT_SERVE_KEY_FILE=key mcip-qdrant serve --bundle bundle --host 0.0.0.0 --qdrant http://qdrant:6333
    """
    with needs_extra("serve", "mcip-qdrant serve"):
        from mcip_qdrant.server.app import build_app
        from mcip_qdrant.server.program import check_collection, listen, serve, url_of, warm_up
        from mcip_qdrant.server.settings import ServerSettings
    from mcip_qdrant.query import QueryEncoder
    from mcip_qdrant.session import Device, choose_provider, default_precision
    from mcip_qdrant.source import parse_roots

    said_where = context.get_parameter_source("location") != ParameterSource.DEFAULT
    if demo:
        if said_where or source_roots or embeddings_only:
            raise click.UsageError(
                "--demo brings its own collection: no --qdrant, --source-root or --embeddings-only with it"
            )
        from mcip_qdrant.cli.serve_demo import demo_archive

        archive = demo_archive(bundle_path)
        bundle_path, location, source_roots = archive.bundle, str(archive.qdrant), (str(archive.pictures),)
    elif bundle_path is None:
        raise click.UsageError("Missing option '--bundle' (env var: 'MCIP_QDRANT_BUNDLE')")

    settings = ServerSettings(
        host=host,
        port=port,
        key=secret("MCIP_QDRANT_SERVE_KEY"),
        allowed_hosts=allowed_hosts,
        roots=parse_roots(source_roots) if source_roots else {},
    ).checked()
    listening = listen(settings)
    provider = choose_provider(Device.parse(device))
    say_device(provider, device)
    store: Store | None = None
    with listening, QueryEncoder.open(bundle_path, device=device, precision=precision) as encoder:
        warm_up(encoder)
        if embeddings_only or not (said_where or demo or Path(location).exists()):
            click.echo("no collection (--qdrant): embeddings only", err=True)
        else:
            store = connect(location, timeout_s=10)
            check_collection(store, collection, encoder, lambda text: click.echo(text, err=True))

        def on_ready() -> None:
            click.echo(f"serving {url_of(listening)}  (Ctrl-C ends it)", err=True)
            if demo:
                webbrowser.open(url_of(listening))

        try:
            app = build_app(
                encoder,
                settings,
                precision=precision or default_precision(provider),
                provider=provider,
                store=store,
                collection=collection,
                on_ready=on_ready,
            )
            serve(app, settings, listening)
        finally:
            if store is not None:
                store.close()
