# Trains the quickstart:
#
#   docker build --tag pnn-jax .
#   docker run --rm --volume "$PWD/runs:/work/runs" pnn-jax
#
# Other runs take other arguments: docker run ... pnn-jax --config=configs/noise_masks.py --workdir=runs/noise_masks
# For GPUs, build with --build-arg EXTRAS=train,cuda and run with --gpus=all.
FROM python:3.13-slim
ARG EXTRAS=train
WORKDIR /work
COPY pyproject.toml README.md LICENSE ./
COPY configs configs
COPY pnn_jax pnn_jax
RUN pip install --no-cache-dir --editable ".[$EXTRAS]" \
    && useradd --create-home trainer && mkdir runs && chown trainer runs
USER trainer
VOLUME /work/runs
ENTRYPOINT ["python", "-m", "pnn_jax.main"]
CMD ["--config=configs/quickstart.py", "--workdir=runs/quickstart"]
