"""`mcip-qdrant serve`: embeddings, search and a page over HTTP (extra `serve`).

Imports go down this list (tests/unit/test_layers.py)::

    program    sockets, uvicorn, start and end                 protocol       slow and too many connections
    app        composition of everything below                 page           the files that browsers load
    embeddings_api, search_api, thumbnails                     routes
    embedder, archive                                          the model and the collection, async and bounded
    turns      tokenizing and decoding, shared by requests     guard, access  what never reaches a route
    batching   rows of many requests -> few model calls        text_limits    texts that are made to take long
    embedding_schemas, search_schemas, schema_fields; problems, metrics, settings

`sample_photos` brings photographs to the archive of `serve --demo`, which `mcip_qdrant.cli.serve_demo` makes.
"""
