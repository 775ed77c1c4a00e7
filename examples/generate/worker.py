"""Writes on where a text ends, token by token, many texts at a time.

Between two steps texts come and go: each has a place in the decoder's caches, and a step takes whatever is there.
"""

import sys
from dataclasses import dataclass

import torch
from safetensors.torch import load_model
from tokenizers import Tokenizer

import forebay
from decoder import TRAINED, Decoder, Writer

PLACES = 16
END = 0  # the token between verses


@dataclass
class Text:
    """One that is being written."""

    place: int
    logits: torch.Tensor
    temperature: float
    seed: int
    left: int  # tokens


class Model:
    """What `forebay.Worker.generate` calls."""

    def __init__(self, folder):
        decoder = Decoder(Tokenizer.from_file(f"{folder}/tokenizer.json").get_vocab_size()).eval()
        load_model(decoder, f"{folder}/decoder.safetensors")
        self.writer = Writer(decoder, PLACES)

    def admit(self, batch):
        """Reads the prompts of new texts."""
        given = {
            name: tensor.flatten().tolist() for name, tensor in batch.torch().items() if tensor.numel() == len(batch)
        }
        ids, mask = batch["input_ids"].torch(), batch["attention_mask"].torch().bool()
        texts = []
        for row in range(len(batch)):
            place, logits = self.writer.admit(ids[row][mask[row]])
            texts.append(Text(place, logits, *(given[name][row] for name in ("temperature", "seed", "max_new_tokens"))))
        return texts

    def step(self, texts):
        """One more token for each; a negative one where there is none."""
        tokens = [chosen(text) for text in texts]
        logits = self.writer.step([text.place for text in texts], tokens)
        for text, row in zip(texts, logits, strict=True):
            text.logits, text.left = row, text.left - 1
        finished = [token == END or text.left <= 0 for text, token in zip(texts, tokens, strict=True)]
        return {"token": [-1 if token == END else token for token in tokens]}, finished

    def drop(self, text):
        """It is done, or nobody waits for it any more."""
        self.writer.drop(text.place)


def chosen(text):
    """The likeliest token, or one at random; the same ones for the same seed, whoever else is being written."""
    if text.temperature <= 0:
        return int(text.logits.argmax())
    generator = torch.Generator().manual_seed(text.seed * 1_000_003 + text.left)
    return int(torch.multinomial((text.logits / text.temperature).softmax(0), 1, generator=generator))


torch.set_num_threads(1)  # the matrices are too small for more
model = Model(sys.argv[1] if len(sys.argv) > 1 else TRAINED)
forebay.Worker("generate").generate(model, max_states=PLACES)
