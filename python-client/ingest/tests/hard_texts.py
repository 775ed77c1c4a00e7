"""Texts on which tokenizers differ if anything is different."""

import pathlib
import random

DATA = pathlib.Path(__file__).resolve().parents[3] / "examples/data"
CORPUS = (DATA / "kjv.txt").read_text(encoding="utf-8").splitlines()

EMOJI = "👩‍👩‍👧‍👦 🇩🇪🇫🇷 👍🏽 ❤️ 🏴󠁧󠁢󠁥󠁮󠁧󠁿 #️⃣"
FIXED = [
    "",
    " ",
    "\0",
    "a\0b \0\0 c",
    "a" * 5000,
    ("supercalifragilistic" * 40 + " ") * 3,
    EMOJI,
    EMOJI.replace(" ", ""),
    "שלום עולם \u202eabc\u202c مرحبا بالعالم ١٢٣",
    "e\u0301 é \u0301x a\u0301\u0323 \u0308 ﬁ İ ß Ǆ ½ ² ﷺ",
    "日本語 テキスト 中文。한국어 ไทย",
    "[MASK] [SEP] <s></s> <pad> <unk> <|endoftext|> a<|endoftext|>b <|fim_prefix|> <0x41> ▁x Ġy ##z",
    "don't WE'LL i'Ve 'twas o'clock's  's 'S",
    "  two  spaces\t\ttabs\r\n\r\nlines \n x  \u00a0 \u3000 \u2028 \u0085 end   ",
    "1234567 3.14159 -5 x2 2x 1,000,000 ١٢٣",
    'if (x[0] == "a_b") { return ~y->z; } // http://x.y/z?q=1&r=%20#frag',
    "\ufeffbom \ufffd \u200b\u200d\ufe0f zero",
    "\x01\x02\x7f\x85 control",
    " " * 300 + "x" + "\n" * 200,
]
WORDS = sorted({word for line in CORPUS[:400] for word in line.split()})
ODD = [
    "<mask>",
    "[SEP]",
    "'s",
    "é",
    "e\u0301",
    "日本",
    "👍🏽",
    "\u00a0",
    "\u3000",
    "\t",
    "\n",
    "  ",
    "\0",
    "½",
    "שלום",
    "▁",
    "…",
    "--",
]


def mixed(count: int, seed: int = 1) -> list[str]:
    """Words and odd characters in any order, with and without spaces between."""
    dice = random.Random(seed)
    texts = []
    for _ in range(count):
        parts = []
        for _ in range(dice.randrange(30)):
            kind = dice.random()
            if kind < 0.6:
                parts.append(dice.choice(WORDS))
            elif kind < 0.85:
                parts.append(dice.choice(ODD))
            else:
                parts.append(chr(dice.choice([dice.randrange(0x20, 0x7F), dice.randrange(0xA0, 0xD7FF)])))
            if dice.random() < 0.75:
                parts.append(" ")
        texts.append("".join(parts))
    return texts


def megabyte() -> str:
    """One line of a MiB."""
    text = " ".join(CORPUS)
    return (text * (2**20 // len(text) + 1))[: 2**20]
