"""Celery workers: chunks of image references -> points. No torch here; the work itself is `mcip_qdrant.pipeline`."""
