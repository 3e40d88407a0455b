# pugdft with PyTorch and its CUDA libraries: runs on a CPU, and on NVIDIA GPUs with `docker run --gpus all`.
#
#   docker build -t pugdft .
#   docker build -t pugdft:quickstart --build-arg 'EXTRAS=[quickstart]' .  # carries the quickstart's weights
#   docker run --rm --user "$(id -u):$(id -g)" -v "$PWD:/work" pugdft finetune RECIPE
#
# Any Debian-like image with Python 3.11 or newer and its venv module can be the base.
ARG BASE_IMAGE=python:3.12-slim
FROM ${BASE_IMAGE}

LABEL org.opencontainers.image.title="pugdft" \
      org.opencontainers.image.description="Fine-tune pretrained timm backbones with sharpness-aware and unit-gradient optimizers" \
      org.opencontainers.image.licenses="MIT"

# Every cache lies below /cache, whoever runs the container: `--user UID:GID` needs no entry in /etc/passwd,
# because USER and LOGNAME answer getpass.getuser() and HOME exists and is writable for all.
# PYTHONSAFEPATH keeps a pugdft/ in the mounted folder from being imported by --num-processes.
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONSAFEPATH=1 \
    HOME=/cache \
    USER=pugdft \
    LOGNAME=pugdft \
    XDG_CACHE_HOME=/cache \
    PUGDFT_CACHE=/cache/pugdft \
    HF_HOME=/cache/huggingface \
    TORCH_HOME=/cache/torch \
    TORCHINDUCTOR_CACHE_DIR=/cache/inductor \
    TRITON_CACHE_DIR=/cache/triton \
    MPLCONFIGDIR=/cache/matplotlib \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

# The dependencies come before the source, so that a change of the source does not install torch again.
COPY pyproject.toml constraints.txt /usr/src/pugdft/
RUN useradd --no-log-init --no-create-home --home-dir /cache --uid 1000 --user-group pugdft \
 && install -d -m 1777 /cache /work \
 && python3 -m venv /opt/venv \
 && python -c 'import tomllib; print(*tomllib.load(open("/usr/src/pugdft/pyproject.toml", "rb"))["project"]["dependencies"], sep="\n")' \
      > /tmp/requirements.txt \
 && pip install --no-cache-dir -c /usr/src/pugdft/constraints.txt -r /tmp/requirements.txt \
 && rm /tmp/requirements.txt

# .dockerignore says what this is: the package, the recipes, README.md, LICENSE.
COPY . /usr/src/pugdft/
ARG EXTRAS=
RUN pip install --no-cache-dir -c /usr/src/pugdft/constraints.txt "/usr/src/pugdft${EXTRAS}"

# By number, so that Kubernetes can see that it is not root. `runs/` goes into /work.
USER 1000:1000
WORKDIR /work
VOLUME ["/cache", "/work"]
ENTRYPOINT ["pugdft"]
CMD ["--help"]
