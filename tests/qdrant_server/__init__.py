"""A Qdrant server for the tests: the real engine (`qdrant-edge-py`) behind the REST calls that qdrant-client makes.

`python -m qdrant_server --data DIR --port N [--api-key KEY]`. What it does not do answers HTTP 501, so that no test passes by luck.
"""
