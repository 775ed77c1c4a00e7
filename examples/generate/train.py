"""Trains the decoder on the bundled text: a tokenizer of its own, then about a minute of training on two cores.

    python examples/generate/train.py [--steps 500] [--out DIR]

What comes of it is kept in `trained/`; a second call does nothing while text, program and decoder are the same.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import pathlib
import time

import torch
from safetensors.torch import save_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.nn import functional as F

from decoder import CONTEXT, TRAINED, Decoder

HERE = pathlib.Path(__file__).resolve().parent
TEXT = HERE.parent / "data/kjv.txt"
VOCABULARY = 1024
END = "<|end|>"
ROWS = 16
RATE = 4e-3


def made_of(steps: int) -> dict[str, object]:
    """What the result depends on."""
    sources = b"".join((HERE / name).read_bytes() for name in ("train.py", "decoder.py"))
    return {"sha256": hashlib.sha256(sources + TEXT.read_bytes()).hexdigest(), "steps": steps}


def train_tokenizer(verses: list[str]) -> Tokenizer:
    """A byte-level BPE: every text has tokens, and all tokens together are the text again."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(verses, trainer)
    # A verse begins with the token that ends the one before.
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{END} $A", special_tokens=[(END, 0)])
    return tokenizer


def train(tokenizer: Tokenizer, verses: list[str], steps: int) -> Decoder:
    """Random stretches of the text; the rate rises for some steps, then falls to a twentieth."""
    torch.manual_seed(0)
    encodings = tokenizer.encode_batch(verses)
    ids = torch.tensor([token for encoding in encodings for token in encoding.ids])
    decoder = Decoder(tokenizer.get_vocab_size())
    optimizer = torch.optim.AdamW(decoder.parameters(), weight_decay=0.05)
    begin, recent = time.monotonic(), []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / 20) * (0.525 + 0.475 * math.cos(math.pi * step / steps))
        rows = ids[torch.randint(len(ids) - CONTEXT - 1, (ROWS, 1)) + torch.arange(CONTEXT + 1)]
        with torch.autocast("cpu", torch.bfloat16):
            logits = decoder(rows[:, :-1])
        loss = F.cross_entropy(logits.float().flatten(0, 1), rows[:, 1:].flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimizer.step()
        recent = [*recent[-19:], float(loss.detach())]
        if (step + 1) % 50 == 0:
            print(f"step {step + 1} of {steps}  loss {sum(recent) / len(recent):.2f}", flush=True)
    print(
        f"{steps * ROWS * CONTEXT:,} tokens in {time.monotonic() - begin:.0f} s, loss {sum(recent) / len(recent):.2f}"
    )
    return decoder


def main() -> None:
    """Trains, unless what is there was made of the same."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=500, metavar="N", help="how long to train [default: 500]")
    parser.add_argument("--out", type=pathlib.Path, default=TRAINED, metavar="DIR", help="[default: trained/]")
    arguments = parser.parse_args()
    out, made = arguments.out, made_of(arguments.steps)
    stamp = out / "made-of.json"
    if stamp.exists() and json.loads(stamp.read_text()) == made:
        print(f"{out} is up to date")
        return
    out.mkdir(exist_ok=True)
    stamp.unlink(missing_ok=True)
    verses = TEXT.read_text().splitlines()
    tokenizer = train_tokenizer(verses)
    tokenizer.save(str(out / "tokenizer.json"))
    save_model(train(tokenizer, verses, arguments.steps), str(out / "decoder.safetensors"))
    stamp.write_text(json.dumps(made))


if __name__ == "__main__":
    main()
