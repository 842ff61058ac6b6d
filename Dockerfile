# Not built and not tested yet. For a host with an NVIDIA GPU, its driver and the NVIDIA Container Toolkit:
#   docker build --tag fastcifar . && docker run --rm --gpus all --volume "$PWD/runs:/fastcifar/runs" fastcifar
FROM python:3.12-slim-bookworm
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility PIP_ROOT_USER_ACTION=ignore
WORKDIR /fastcifar
COPY . .
RUN bash tools/bootstrap.sh && rm -rf /root/.cache /var/lib/apt/lists/*
ENTRYPOINT ["bash", "tools/quickstart.sh"]
