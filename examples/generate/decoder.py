"""A small decoder-only transformer with a place in its caches for each text that is being written."""

from __future__ import annotations

import pathlib

import torch
from torch import nn
from torch.nn import functional as F

CONTEXT = 128  # tokens, prompt and answer together
WIDTH, LAYERS, HEADS = 128, 3, 4
TRAINED = pathlib.Path(__file__).resolve().parent / "trained"


class Layer(nn.Module):
    """Attention and a feed-forward part, each behind a norm and beside a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.before_attention, self.before_wide = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.mixed = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.wide, self.narrow = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def heads(self, x: torch.Tensor) -> torch.Tensor:
        """[3, n, heads, tokens, width of a head]: queries, keys and values."""
        return self.qkv(self.before_attention(x)).view(*x.shape[:2], 3, HEADS, -1).permute(2, 0, 3, 1, 4)

    def rest(self, x: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        x = x + self.mixed(attended.transpose(1, 2).reshape(x.shape))
        return x + self.narrow(F.gelu(self.wide(self.before_wide(x))))


class Decoder(nn.Module):
    """Next-token logits; the output layer is the embedding."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(vocabulary, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.last = nn.LayerNorm(WIDTH)
        for table in (self.tokens, self.places):
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """float32[n, tokens, vocabulary] of int64[n, tokens]: all places at once, as training needs it."""
        x = self.tokens(ids) + self.places.weight[: ids.shape[1]]
        for layer in self.layers:
            x = layer.rest(x, F.scaled_dot_product_attention(*layer.heads(x), is_causal=True))
        return F.linear(self.last(x), self.tokens.weight)


class Writer:
    """A decoder with room for `places` texts. One step gives each text that is asked for its next logits, however long
    each is: that is what lets texts come and go between steps."""

    def __init__(self, decoder: Decoder, places: int) -> None:
        self.decoder = decoder
        self.free = list(range(places))
        self.length = torch.zeros(places, dtype=torch.int64)
        self.keys, self.values = torch.zeros(2, LAYERS, places, HEADS, CONTEXT, WIDTH // HEADS)

    @torch.inference_mode()
    def admit(self, ids: torch.Tensor) -> tuple[int, torch.Tensor]:
        """Reads a prompt, int64[tokens], into a free place; that place, and the logits after the prompt."""
        place, tokens = self.free.pop(), len(ids)
        x = (self.decoder.tokens(ids) + self.decoder.places.weight[:tokens])[None]
        for index, layer in enumerate(self.decoder.layers):
            heads = layer.heads(x)
            self.keys[index, place, :, :tokens], self.values[index, place, :, :tokens] = heads[1:, 0]
            x = layer.rest(x, F.scaled_dot_product_attention(*heads, is_causal=True))
        self.length[place] = tokens
        return place, F.linear(self.decoder.last(x[0, -1]), self.decoder.tokens.weight)

    @torch.inference_mode()
    def step(self, places: list[int], ids: list[int]) -> torch.Tensor:
        """float32[n, vocabulary]: what follows when `ids` are written at the end of the texts in `places`."""
        at, place = self.length[places], torch.tensor(places)
        longest = int(at.max()) + 1
        seen = (torch.arange(longest) <= at[:, None])[:, None, None, :]
        x = (self.decoder.tokens(torch.tensor(ids)) + self.decoder.places(at))[:, None]
        for index, layer in enumerate(self.decoder.layers):
            query, key, value = layer.heads(x)
            self.keys[index, place, :, at], self.values[index, place, :, at] = key[:, :, 0], value[:, :, 0]
            keys, values = self.keys[index, place, :, :longest], self.values[index, place, :, :longest]
            x = layer.rest(x, F.scaled_dot_product_attention(query, keys, values, attn_mask=seen))
        self.length[place] = at + 1
        return F.linear(self.decoder.last(x[:, 0]), self.decoder.tokens.weight)

    def drop(self, place: int) -> None:
        """Its place is free for another text."""
        self.free.append(place)
