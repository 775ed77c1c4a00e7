"""The examples' models beside references, without a server."""

import importlib
import pathlib
import sys
from types import ModuleType

import pytest
import torch

HERE = pathlib.Path(__file__).resolve().parent


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch):
    """Imports a module from the folder of an example, as `python worker.py` does."""

    def load(folder: str, name: str) -> ModuleType:
        monkeypatch.syspath_prepend(str(HERE / folder))
        monkeypatch.delitem(sys.modules, name, raising=False)
        return importlib.import_module(name)

    return load


def test_the_embedders_rows_are_those_of_transformers(load) -> None:
    from tokenizers import Tokenizer
    from transformers import BertModel

    minilm = load("embedder", "minilm")
    assert (HERE / "data/tokenizer.json").read_bytes() == (minilm.MODEL / "tokenizer.json").read_bytes()
    tokenizer = Tokenizer.from_file(str(minilm.MODEL / "tokenizer.json"))
    tokenizer.enable_truncation(256)
    tokenizer.enable_padding()
    verses = (HERE / "data/kjv.txt").read_text().splitlines()[:12]
    rows = tokenizer.encode_batch([*verses, "a", " ".join(verses * 3)])
    ids = torch.tensor([row.ids for row in rows])
    mask = torch.tensor([row.attention_mask for row in rows])
    assert not mask.all()
    with torch.inference_mode():
        hidden = BertModel.from_pretrained(minilm.MODEL)(input_ids=ids, attention_mask=mask).last_hidden_state
    mean = (hidden * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)
    model = minilm.MiniLM()
    torch.testing.assert_close(model(ids, mask), mean / mean.norm(dim=1, keepdim=True), atol=1e-5, rtol=0)
    # A row alone, without padding, takes the way without a mask.
    (length,) = mask[0].sum()[None]
    torch.testing.assert_close(model(ids[:1, :length], mask[:1, :length]), model(ids, mask)[:1], atol=1e-5, rtol=0)


def test_writing_step_by_step_gives_what_all_places_at_once_give(load) -> None:
    decoder = load("generate", "decoder")
    torch.manual_seed(1)
    model = decoder.Decoder(300).eval()
    writer = decoder.Writer(model, places=3)
    texts = {}
    for length in (5, 1, 9):
        ids = torch.randint(300, (length,))
        place, logits = writer.admit(ids)
        texts[place] = (ids.tolist(), logits)
    for step in range(6):
        if step == 3:  # one leaves, another takes its place
            place = next(iter(texts))
            del texts[place]
            writer.drop(place)
            ids = torch.randint(300, (2,))
            again, logits = writer.admit(ids)
            assert again == place
            texts[again] = (ids.tolist(), logits)
        chosen = [int(logits.argmax()) for _, logits in texts.values()]
        stepped = writer.step(list(texts), chosen)
        for index, (place, (ids, _)) in enumerate(list(texts.items())):
            texts[place] = ([*ids, chosen[index]], stepped[index])
    with torch.inference_mode():
        for ids, logits in texts.values():
            torch.testing.assert_close(model(torch.tensor([ids]))[0, -1], logits, atol=1e-4, rtol=0)


def test_shares_of_the_split_model_add_up_to_the_whole(load, monkeypatch: pytest.MonkeyPatch) -> None:
    mlp = load("ranks", "mlp")
    shares = [mlp.Share(rank, 2) for rank in range(2)]
    x = torch.linspace(-1, 1, 3 * mlp.WIDTH).view(3, mlp.WIDTH)
    whole = x
    for up, down in mlp.weights():
        whole = whole + torch.nn.functional.gelu(whole @ up.T) @ down.T
    # The sum over ranks, without processes: what the other share adds at the same layer.
    together = x
    for layers in zip(*(share.layers for share in shares), strict=True):
        together = together + sum(torch.nn.functional.gelu(together @ up.T) @ down.T for up, down in layers)
    torch.testing.assert_close(together, whole, atol=1e-5, rtol=0)
    assert [up.shape[0] for up, _ in shares[0].layers] == [mlp.HIDDEN // 2] * mlp.LAYERS
