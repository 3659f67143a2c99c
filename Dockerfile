# One image for workers and for the command line:
#   docker build --build-arg RUNTIME=cpu --tag mcip-qdrant:0.1.0-cpu .
#   docker build --build-arg RUNTIME=gpu --tag mcip-qdrant:0.1.0-gpu .
# RUNTIME=gpu brings ONNX Runtime for CUDA 13 with CUDA's libraries as wheels, so the slim base is enough; the host provides
# the driver through the NVIDIA Container Toolkit. No torch in either: export runs elsewhere.
ARG PYTHON_IMAGE=python:3.12.14-slim-bookworm

FROM ${PYTHON_IMAGE} AS wheel
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY mcip_qdrant/ mcip_qdrant/
COPY export/ export/
COPY workers/ workers/
COPY demo/world/ demo/world/
RUN python -m pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM ${PYTHON_IMAGE} AS runtime
ARG RUNTIME=cpu
LABEL org.opencontainers.image.title="mcip-qdrant" \
      org.opencontainers.image.description="Ingestion worker and command line of mcip-qdrant" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN groupadd --gid 10001 mcip \
    && useradd --uid 10001 --gid 10001 --create-home --shell /usr/sbin/nologin mcip

# Only the wheel: beside the checkout's bare `export/` and `workers/`, `python -m` and `celery -A` would find those instead.
COPY --from=wheel /wheels/ /wheels/
# The versions of dependencies are those of the day: the image that was built and tried is the pin.
# hadolint ignore=DL3013
RUN case "${RUNTIME}" in cpu|gpu) ;; *) echo "RUNTIME is cpu or gpu, not '${RUNTIME}'" >&2; exit 1 ;; esac \
    && set -- /wheels/mcip_qdrant-*.whl \
    && python -m pip install --no-cache-dir "$1[${RUNTIME},workers]" \
    && python -m pip check \
    && python -c "import onnxruntime, celery, mcip_qdrant, importlib.util as u; assert u.find_spec('torch') is None"

# PYTHONUNBUFFERED: the last lines before a crash reach the log. CUDA_CACHE_PATH: /tmp stays writable where the root is read-only.
ENV PYTHONUNBUFFERED=1 \
    MCIP_QDRANT_METRICS_PORT=9808 \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    CUDA_CACHE_PATH=/tmp/cuda-cache
USER 10001:10001
WORKDIR /home/mcip
EXPOSE 9808
STOPSIGNAL SIGTERM
# A worker proves its bundle on its own device before it takes work; that time is in start-period. No proxy: it is this container.
HEALTHCHECK --interval=15s --timeout=5s --start-period=300s --retries=4 \
    CMD ["python", "-c", "import os, urllib.request as r; r.build_opener(r.ProxyHandler({})).open('http://127.0.0.1:' + os.environ['MCIP_QDRANT_METRICS_PORT'] + '/health', timeout=4)"]
ENTRYPOINT ["mcip-qdrant"]
CMD ["worker"]
