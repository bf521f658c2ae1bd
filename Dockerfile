# One image for each profile of services.toml, with just what that profile needs:
#
#   docker build -t aiservices .                                          the demo, no GPU needed
#   docker build -t describe --build-arg PROFILE=qwen-describe-image .    one model, one container
#
#   docker run --rm -p 8001:8001 --read-only --tmpfs /tmp aiservices
#   docker run --rm -p 8001:8001 --gpus all --stop-timeout 40 -v models:/models -v data:/data --env-file .env describe
#
# Other commands than "serve" go behind the image's name: check, pull, runpod (with --build-arg EXTRAS=runpod).

# Python 3.11 on Debian 12; torch's wheels hold the CUDA libraries that they need, so a GPU wants no other base.
ARG BASE=python:3.11-slim-bookworm

# What the profile needs, in a line of its own: settings that change nothing of it leave the install's layer as it is.
FROM ${BASE} AS needs
ARG PROFILE=demo
# More extras of setup.cfg, separated by commas: s3, runpod.
ARG EXTRAS=""
WORKDIR /app
COPY setup.cfg services.toml ./
COPY scripts/installing.py scripts/
RUN python3 scripts/installing.py "$PROFILE" --with "$EXTRAS" --dry-run > needs.txt

FROM ${BASE}
# Where torch comes from. For an image without a GPU, PyTorch's index of CPU builds saves 2.4 GB of download.
ARG TORCH_INDEX_URL=""

RUN useradd --create-home --uid 10001 aiservices \
    && install --directory --owner=aiservices --group=aiservices /models /data

WORKDIR /app
# Only what decides what is installed: this layer stays until one of these changes.
COPY setup.cfg pyproject.toml ./
COPY requirements requirements
COPY scripts/install scripts/installing.py scripts/
COPY aiservices/__init__.py aiservices/
COPY --from=needs /app/needs.txt ./
RUN PIP_NO_CACHE_DIR=1 scripts/install --only "$(cat needs.txt)"
COPY services.toml ./
COPY aiservices aiservices
# The process may not write here.
RUN .venv/bin/python -m compileall -q aiservices

ARG PROFILE=demo
LABEL org.opencontainers.image.title="aiservices" \
      org.opencontainers.image.description="AI models as RunPod-style jobs: run, poll, stream, cancel" \
      org.opencontainers.image.licenses="Apache-2.0" \
      aiservices.profile="$PROFILE"
ENV AISERVICES_CONFIG=/app/services.toml \
    AISERVICES_HOST=0.0.0.0 \
    AISERVICES_MODEL_DIR=/models \
    AISERVICES_PROFILE=$PROFILE \
    NUMBA_CACHE_DIR=/tmp/numba \
    PYTHONUNBUFFERED=1

USER 10001
VOLUME /models /data
EXPOSE 8001
# Alive is enough: a container that still loads its model must not be killed for it. /readyz says whether it is ready.
# (With the command "runpod" nothing listens; RunPod does not look at this.)
HEALTHCHECK --interval=15s --timeout=5s --start-period=30s --retries=3 \
    CMD ["/app/.venv/bin/python", "-c", "import os, urllib.request as u; e = os.environ.get; u.urlopen('http://127.0.0.1:' + (e('AISERVICES_PORT') or e('PORT') or '8001') + '/livez', timeout=4)"]

# No shell between the container's runtime and the process: SIGTERM reaches it, and it drains (grace_s).
ENTRYPOINT ["/app/.venv/bin/python", "-m", "aiservices"]
CMD ["serve"]
