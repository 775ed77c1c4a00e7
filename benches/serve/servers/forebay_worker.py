"""forebay's worker: batches come as tensors, made by the daemon."""

import os

from models import JOBS

import forebay

model = JOBS[os.environ["JOB"]]()
# NumPy where the rivals use NumPy, torch where they use torch.
as_numpy = os.environ["JOB"] == "json"


def forward(batch):
    return model.forward(batch.numpy() if as_numpy else batch.torch())


forebay.Worker("compare").run(forward)
