# Trains the quickstart, and leaves the files of the run in the folder `runs` of the host:
#
#   docker build --tag pnn-jax .
#   mkdir -p runs
#   docker run --rm --user "$(id -u):$(id -g)" --volume "$PWD/runs:/app/runs" pnn-jax
#
# --user: the folder belongs to you, and the user of the image may not write to it.
# Other runs take other arguments: docker run ... pnn-jax --config=noise_masks --workdir=runs/noise_masks
# For GPUs, build with --build-arg EXTRAS=train,cuda and run with --gpus=all.
FROM python:3.13-slim
ARG EXTRAS=train
WORKDIR /app
COPY pyproject.toml README.md LICENSE ./
COPY configs configs
COPY pnn_jax pnn_jax
RUN pip install --no-cache-dir --editable ".[$EXTRAS]" \
    && useradd --create-home trainer && mkdir runs && chown trainer runs
# Libraries keep caches in the home directory. This one can be written to by whoever runs the image.
ENV HOME=/tmp
USER trainer
VOLUME /app/runs
ENTRYPOINT ["python", "-m", "pnn_jax.main"]
CMD ["--config=quickstart", "--workdir=runs/quickstart"]
