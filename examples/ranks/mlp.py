"""A multilayer perceptron split over processes as large models are: each has a share of the hidden columns."""

import torch
import torch.distributed as dist
from torch.nn import functional as F

WIDTH, HIDDEN, LAYERS = 64, 256, 3


def weights() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """All of them, for each layer [HIDDEN, WIDTH] and [WIDTH, HIDDEN]; the same wherever they are made."""
    torch.manual_seed(0)
    return [(torch.randn(HIDDEN, WIDTH) / WIDTH**0.5, torch.randn(WIDTH, HIDDEN) / HIDDEN**0.5) for _ in range(LAYERS)]


class Share:
    """What one rank of `ranks` has and does: its columns, then a sum over all ranks."""

    def __init__(self, rank: int, ranks: int) -> None:
        self.layers = [
            (up.chunk(ranks)[rank].clone(), down.chunk(ranks, dim=1)[rank].clone()) for up, down in weights()
        ]

    @torch.inference_mode()
    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """float32[n, WIDTH] of the same; every rank must be given the same x."""
        for up, down in self.layers:
            part = F.gelu(x @ up.T) @ down.T
            dist.all_reduce(part)
            x = x + part
        return x
