"""One of two processes that run one model together. Each is given every batch; what rank 0 returns is the answer."""

import torch.distributed as dist

import forebay
from mlp import Share

dist.init_process_group("gloo")  # finds the others by RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT
model = Share(dist.get_rank(), dist.get_world_size())


def forward(batch):
    return {"y": model(batch["x"].torch())}


forebay.Worker("ranks").run(forward)
