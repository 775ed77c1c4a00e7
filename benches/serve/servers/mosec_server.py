"""mosec as its documentation advises: a worker class with batched forward, several processes, a short wait."""

import os

from models import Model
from mosec import Server, Worker

BATCH, WAIT_MS = int(os.environ["BATCH"]), int(float(os.environ["WAIT_MS"]))


class Predict(Worker):
    def __init__(self):
        self.model = Model(os.environ["JOB"])

    def deserialize(self, data):
        return self.model.decode(data)

    def forward(self, data):
        return self.model.answers(data) if BATCH > 1 else self.model.answers([data])[0]


if __name__ == "__main__":
    # mosec reads its own options from the command line.
    workers = int(os.environ["WORKERS"])
    server = Server()
    server.append_worker(
        Predict, num=workers, max_batch_size=BATCH, max_wait_time=WAIT_MS, route="/predict", timeout=60
    )
    server.run()
