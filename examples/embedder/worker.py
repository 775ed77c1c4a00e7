"""Sentence embeddings: texts come as ready batches of tokens, rows of 384 numbers go back."""

from minilm import MiniLM

import forebay

model = MiniLM()


def forward(batch):
    tensors = batch.torch()  # int64[n, tokens] each, where the daemon has written them
    return {"embedding": model(tensors["input_ids"], tensors["attention_mask"])}


forebay.Worker("embedder").run(forward)
