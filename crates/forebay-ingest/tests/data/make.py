"""Makes the small tokenizers of this folder from the bundled corpus, and the ids that the Python package gives.

    python make.py          with the packages of ci/requirements.txt

Training a Unigram takes another course each time: the files of one run belong together.

One tokenizer of each kind that users bring, with the parts that theirs have. `expected.json` holds for each of them the
ids of difficult texts, with and without special tokens, alone and as pairs, and the text that they decode to.
"""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

HERE = Path(__file__).resolve().parent
BUNDLED = HERE.parents[3] / "examples/data"
VOCAB = 900
CL100K = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TEXTS = [
    "",
    " ",
    "In the beginning God created the heaven and the earth.",
    "  two  spaces   and\ttabs\n\nnew lines \r\n end ",
    "don't we'll I'VE 'twas o'clock  's",
    "1234567 3.14 -5 x2 2x 1,000,000",
    "e\u0301 \u00e9 \u0301alone a\u0301 \u0308 \ufb01 \u0130stanbul \u00df",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466 \U0001f1e9\U0001f1ea \U0001f44d\U0001f3fd \u2764\ufe0f",
    "\u05e9\u05dc\u05d5\u05dd \u05e2\u05d5\u05dc\u05dd \u202eabc\u202c \u0627\u0644\u0633\u0644\u0627\u0645",
    "\u65e5\u672c\u8a9e\u306e\u30c6\u30ad\u30b9\u30c8 \u4e2d\u6587\u6587\u672c \ud55c\uad6d\uc5b4 \u0e44\u0e17\u0e22",
    "a\0b \0 \u0001\u007f\u0085\u00a0x\u2028y\u3000z\ufeff",
    "<s> </s> [MASK] <mask> a<mask>b word <mask>  word <|end|><|end|>",
    'well-known (bracketed) "quoted" `code` a/b\\c #tag @user x=y;z',
    "a" * 300,
    "word " * 60,
    "\u2581already \u0120marked <0x41> \ufffd",
    " \u00a0 a \u00a0b",
]
PAIRS = [[2, 4], [0, 2], [3, 5], [14, 2], [6, 0]]


def corpus() -> list[str]:
    return (BUNDLED / "kjv.txt").read_text(encoding="utf-8").splitlines()[:3000]


def byte_level() -> Tokenizer:
    """As GPT-2 and RoBERTa."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>", AddedToken("<mask>", lstrip=True)]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    return tokenizer


def split() -> Tokenizer:
    """As Llama 3 and Qwen: NFC, a pattern, bytes."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(CL100K), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=["<|begin|>", "<|end|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    begin = processors.TemplateProcessing("<|begin|> $A", "<|begin|> $A <|begin|>:1 $B:1", [("<|begin|>", 0)])
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), begin])
    return tokenizer


def unigram() -> Tokenizer:
    """As T5 and XLM-R: compatibility forms, runs of spaces, metaspace."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Nmt(), normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = trainers.UnigramTrainer(vocab_size=VOCAB, special_tokens=special, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        "<s> $A </s>", "<s> $A </s> </s> $B </s>", [("<s>", 0), ("</s>", 2)]
    )
    return tokenizer


def words() -> Tokenizer:
    """Whole words, lower case, without special tokens around them."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFD(), normalizers.Lowercase(), normalizers.StripAccents()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(vocab_size=VOCAB, special_tokens=["<unk>"], show_progress=False)
    tokenizer.train_from_iterator(corpus(), trainer)
    return tokenizer


def byte_fallback() -> Tokenizer:
    """As Llama 2 and Gemma: no pre-tokenizer, unknown characters as bytes."""
    trainer_of = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    trainer_of.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    trainer_of.pre_tokenizer = pre_tokenizers.Split("\u2581", "merged_with_next")
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer_of.train_from_iterator(
        corpus(), trainers.BpeTrainer(vocab_size=VOCAB + 300, special_tokens=special, show_progress=False)
    )
    content = json.loads(trainer_of.to_str())
    content["pre_tokenizer"] = None
    content["added_tokens"] = [token for token in content["added_tokens"] if token["id"] < 3]
    tokenizer = Tokenizer.from_str(json.dumps(content))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A <s>:1 $B:1", [("<s>", 1)])
    return tokenizer


def expected(tokenizer: Tokenizer) -> dict[str, object]:
    tokenizer.no_truncation()
    tokenizer.no_padding()
    whole = [tokenizer.encode(text) for text in TEXTS]
    tokenizer.enable_truncation(12)
    pairs = [tokenizer.encode(TEXTS[first], TEXTS[second]) for first, second in PAIRS]
    cut = [tokenizer.encode(text).ids for text in TEXTS]
    tokenizer.no_truncation()
    return {
        "ids": [e.ids for e in whole],
        "offsets": [e.offsets for e in whole],
        "plain": [tokenizer.encode(text, add_special_tokens=False).ids for text in TEXTS],
        "cut_to_12": cut,
        "pairs_cut_to_12": [e.ids for e in pairs],
        "pair_types": [e.type_ids for e in pairs],
        "decoded": [tokenizer.decode(e.ids, skip_special_tokens=False) for e in whole],
        "decoded_without_special": [tokenizer.decode(e.ids) for e in whole],
    }


def main() -> None:
    made = {f.__name__: f() for f in (byte_level, split, unigram, byte_fallback, words)}
    made["word_piece"] = Tokenizer.from_file(str(BUNDLED / "tokenizer.json"))
    results = {name: expected(tokenizer) for name, tokenizer in made.items()}
    for name, tokenizer in made.items():
        if name != "word_piece":
            content = json.dumps(json.loads(tokenizer.to_str()), ensure_ascii=False, separators=(",", ":"))
            (HERE / f"{name}.json").write_text(content + "\n", encoding="utf-8")
    reference = {"texts": TEXTS, "pairs": PAIRS, "tokenizers": results}
    (HERE / "expected.json").write_text(json.dumps(reference, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
