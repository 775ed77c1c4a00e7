"""LitServe as its documentation advises: dynamic batching, several workers, fast queues."""

import os
import sys

import litserve as ls
from models import Model

BATCH = int(os.environ["BATCH"])


class Api(ls.LitAPI):
    def setup(self, device):
        self.model = Model(os.environ["JOB"])

    def decode_request(self, request):
        # JSON has been read by the server already; a file came as a form.
        return self.model.job.item(request) if self.model.json else request["file"].file.read()

    def batch(self, inputs):
        return list(inputs)

    def predict(self, inputs):
        return self.model.answers(inputs if BATCH > 1 else [inputs])

    def unbatch(self, output):
        return output

    def encode_response(self, output):
        return output if BATCH > 1 else output[0]


if __name__ == "__main__":
    port, workers = int(sys.argv[1]), int(sys.argv[2])
    api = Api(max_batch_size=BATCH, batch_timeout=float(os.environ["WAIT_MS"]) / 1e3)
    server = ls.LitServer(api, accelerator="cpu", workers_per_device=workers, fast_queue=True, timeout=60)
    server.run(host="127.0.0.1", port=port, generate_client_file=False, log_level="warning")
