"""What every server computes: four models, the same code and threads in each.

The rivals prepare a batch in Python with what their users have (tokenizers, Pillow, NumPy); forebay is given the
prepared batch and calls `forward` alone.
"""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
TOKENIZER = ROOT / "examples/data/tokenizer.json"
SIDE, MEAN, STD = 224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Json:
    """Four numbers in, two out: nothing but the server itself."""

    def __init__(self) -> None:
        self.weights = np.arange(8, dtype=np.float32).reshape(4, 2)

    def item(self, request: dict[str, Any]) -> list[float]:
        return request["inputs"]["x"]

    def prepare(self, items: list[list[float]]) -> dict[str, np.ndarray]:
        return {"x": np.array(items, np.float32)}

    def forward(self, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"y": tensors["x"] @ self.weights}


class Texts:
    """A text in. Subclasses say what comes of its tokens."""

    max_tokens = 512

    def __init__(self) -> None:
        import torch
        from tokenizers import Tokenizer

        torch.set_num_threads(1)
        self.torch = torch
        self.tokenizer = Tokenizer.from_file(str(TOKENIZER))
        self.tokenizer.enable_truncation(self.max_tokens)
        self.tokenizer.enable_padding()

    def item(self, request: dict[str, Any]) -> str:
        return request["inputs"]

    def prepare(self, items: list[str]) -> dict[str, Any]:
        rows = self.tokenizer.encode_batch_fast(items)
        return {
            "input_ids": self.torch.tensor([row.ids for row in rows]),
            "attention_mask": self.torch.tensor([row.attention_mask for row in rows]),
        }


class Text(Texts):
    """400 tokens to 64 numbers, the mean of their rows in a table."""

    def __init__(self) -> None:
        super().__init__()
        generator = self.torch.Generator().manual_seed(0)
        self.table = self.torch.randn(30_522, 64, generator=generator)

    def forward(self, tensors: dict[str, Any]) -> dict[str, Any]:
        mask = tensors["attention_mask"][:, :, None].float()
        rows = self.torch.nn.functional.embedding(tensors["input_ids"], self.table)
        return {"embedding": (rows * mask).sum(1) / mask.sum(1)}


class MiniLm(Texts):
    """The model of examples/embedder: a verse to 384 numbers."""

    max_tokens = 256

    def __init__(self) -> None:
        super().__init__()
        sys.path.insert(0, str(ROOT / "examples/embedder"))
        from minilm import MiniLM

        self.model = MiniLM()

    def forward(self, tensors: dict[str, Any]) -> dict[str, Any]:
        return {"embedding": self.model(tensors["input_ids"], tensors["attention_mask"])}


class Image:
    """A photograph to the means of its three colours at 224 x 224."""

    def __init__(self) -> None:
        import torch

        torch.set_num_threads(1)
        self.torch = torch
        self.mean, self.std = np.array(MEAN, np.float32), np.array(STD, np.float32)

    def prepare(self, items: list[bytes]) -> dict[str, Any]:
        from PIL import Image as Pillow

        batch = np.empty((len(items), 3, SIDE, SIDE), np.float32)
        for index, item in enumerate(items):
            pixels = Pillow.open(io.BytesIO(item)).convert("RGB").resize((SIDE, SIDE), Pillow.Resampling.BILINEAR)
            array = np.asarray(pixels).astype(np.float32) / 255.0
            batch[index] = ((array - self.mean) / self.std).transpose(2, 0, 1)
        return {"pixel_values": self.torch.from_numpy(batch)}

    def forward(self, tensors: dict[str, Any]) -> dict[str, Any]:
        return {"mean": tensors["pixel_values"].mean((2, 3))}


JOBS = {"json": Json, "text": Text, "image": Image, "minilm": MiniLm}


class Model:
    """A job as the rivals need it: bodies to items, batches of items to lists of numbers."""

    def __init__(self, job: str) -> None:
        self.job = JOBS[job]()
        self.json = job != "image"

    def decode(self, body: bytes) -> Any:
        """An item, of a request's whole body."""
        return self.job.item(json.loads(body)) if self.json else body

    def answers(self, items: list[Any]) -> list[dict[str, list[float]]]:
        """One JSON object for each item."""
        outputs = {name: rows.tolist() for name, rows in self.job.forward(self.job.prepare(items)).items()}
        return [{name: rows[index] for name, rows in outputs.items()} for index in range(len(items))]
