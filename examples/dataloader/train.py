"""A torch DataLoader fed from a ring: its workers attach to the queue and share the messages among them.

The producer here is `forebay feed`; any other will do. Each worker opens its own consumer, so a batch goes to exactly
one of them.
"""

import sys
from collections.abc import Iterator

import torch
from torch.utils.data import DataLoader, IterableDataset

import forebay


class RingDataset(IterableDataset[dict[str, torch.Tensor]]):
    """The messages of a ring, until its producer closes it."""

    def __init__(self, ring: str) -> None:
        self.ring = ring

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        for message in forebay.Consumer(self.ring, timeout_s=30):
            # A worker hands its tensors on through torch's own shared memory, which outlives the slot. The message is
            # acked before that: DataLoader asks its workers in turn, and one that waits at the ring's end is told so
            # only when nothing that the other one holds can come back.
            with message:
                batch = {"first_row": torch.tensor(message.correlation_id)} | {
                    name: tensor.clone() for name, tensor in message.torch().items()
                }
            yield batch


def main() -> None:
    ring, lines = sys.argv[1], int(sys.argv[2])
    loader = DataLoader(RingDataset(ring), batch_size=None, num_workers=2, multiprocessing_context="spawn")
    rows, tokens, firsts = 0, 0, set()
    for batch in loader:
        rows += batch["input_ids"].shape[0]
        tokens += int(batch["attention_mask"].sum())
        first = int(batch["first_row"])
        assert first not in firsts, f"the batch of row {first} came twice"
        firsts.add(first)
    assert rows == lines, f"{rows} of {lines} rows came"
    print(f"two workers received {rows} rows, {tokens} tokens")


if __name__ == "__main__":
    main()
