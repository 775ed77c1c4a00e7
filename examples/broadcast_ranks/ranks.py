"""Four ranks see every batch, as the ranks of a tensor-parallel model do.

Each rank multiplies the batch by its own quarter of a weight matrix; together they give the whole product, which the
parent compares with the one it computed itself.
"""

import multiprocessing
import sys

import numpy as np

import forebay

RANKS = 4
STEPS = 50
RNG_SEED = 7


def weights() -> np.ndarray:
    return np.random.default_rng(RNG_SEED).integers(-4, 5, (64, 64)).astype(np.int64)


def rank(ring: str, index: int, results: "multiprocessing.Queue[tuple[int, int, np.ndarray]]") -> None:
    own = np.split(weights(), RANKS, axis=1)[index]
    for message in forebay.Consumer(ring, timeout_s=30, label=f"rank {index}"):
        results.put((message.correlation_id, index, message["x"].numpy() @ own))


def main() -> None:
    ring = sys.argv[1] if len(sys.argv) > 1 else "batches"
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    schema = forebay.Schema("batches", "1.0", {"x": ("int64", (8, 64))})
    with forebay.Producer(ring, schema=schema, kind="broadcast", slots=4) as producer:
        ranks = [context.Process(target=rank, args=(ring, i, results)) for i in range(RANKS)]
        for process in ranks:
            process.start()
        # A broadcast ring offers a message to who is there when it is published: wait for all four.
        producer.wait_for_consumers(RANKS, timeout_s=60)
        rng = np.random.default_rng(1)
        batches = [rng.integers(0, 100, (8, 64)) for _ in range(STEPS)]
        for step, batch in enumerate(batches):
            producer.send({"x": batch}, correlation_id=step)
        parts: dict[int, dict[int, np.ndarray]] = {}
        for _ in range(STEPS * RANKS):
            step, index, part = results.get(timeout=60)
            parts.setdefault(step, {})[index] = part
        producer.drain(timeout_s=30)
    for process in ranks:
        process.join(timeout=30)
        assert process.exitcode == 0
    for step, batch in enumerate(batches):
        whole = np.concatenate([parts[step][i] for i in range(RANKS)], axis=1)
        assert np.array_equal(whole, batch @ weights()), f"step {step}"
    print(f"{RANKS} ranks saw all {STEPS} batches")


if __name__ == "__main__":
    main()
