"""`mcip-qdrant serve`: embeddings, search and a page over HTTP (extra `serve`).

Imports go down this list::

    program    sockets, uvicorn, start and end                page, docs     the files that browsers load
    app        composition of everything below                demo           the archive of `serve --demo`
    embeddings_api, search_api, thumbnails                    routes
    embedder, archive                                         the model and the collection, async and bounded
    batching   rows of many requests -> few model calls       guard, access  what never reaches a route
    embedding_schemas, search_schemas, schema_fields; problems, metrics, settings
"""
