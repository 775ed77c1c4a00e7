"""The model's side: receives padded batches as torch tensors and checks every request's ids."""

import sys

import torch

import forebay


def main() -> None:
    seen: set[int] = set()
    for message in forebay.Consumer(sys.argv[1], timeout_s=30):
        batch = message.torch()
        lengths = 1 + batch["request"] % 16
        columns = torch.arange(batch["input_ids"].shape[1])
        expected = batch["request"][:, None] * 100 + columns
        expected[columns >= lengths[:, None]] = 0
        assert torch.equal(batch["input_ids"], expected)
        seen.update(batch["request"].tolist())
    assert seen == set(range(200)), f"{200 - len(seen)} requests are missing"
    print(f"received all {len(seen)} requests")


if __name__ == "__main__":
    main()
