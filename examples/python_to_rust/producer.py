"""Writes results in place from Python: a loan's tensor is NumPy memory inside the slot."""

import sys

import numpy as np

import forebay


def main() -> None:
    schema = forebay.Schema("scores", "1.0", {"embedding": ("float32", (4, 256)), "label": ("int64", (4,))})
    with forebay.Producer(sys.argv[1], schema=schema, slots=4) as producer:
        for step in range(100):
            loan = producer.loan({"embedding": ("float32", (4, 256)), "label": ("int64", (4,))})
            embedding = loan["embedding"].numpy()
            np.multiply(np.arange(4 * 256, dtype=np.float32).reshape(4, 256), step, out=embedding)
            loan["label"].numpy()[:] = step
            loan.publish(correlation_id=step)
        # The same with a copy, when the arrays exist already.
        producer.send(
            {"embedding": np.zeros((1, 256), np.float32), "label": np.array([100])},
            correlation_id=100,
        )
        producer.drain(timeout_s=30)
    print("published 101 messages")


if __name__ == "__main__":
    main()
