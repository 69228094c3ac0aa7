"""Texts on which tokenizers differ, text to train small ones on, and the tokenizers of known families.

The families' tokenizers are trained here on text that comes with Python, with each family's own normalizer
and pre-tokenizer as its published tokenizer.json has them.
"""
# ruff: noqa: RUF001 - full-width marks are what these texts are for

from __future__ import annotations

import inspect
import json
import keyword
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

MULTILINGUAL = (
    "The quick brown fox jumps over the lazy dog. It's what we'd hoped they'll do; I'm sure you've seen it.",
    "Numbers: 0 1 12 123 1234 12345 1234567890, 3.14159, 1,000,000.50, 0x7F, 1e-5, 2024-01-31, ½ ² Ⅷ ٣٤ १२३",
    "今天天气很好，我想去公园散步。机器学习模型需要大量数据。我在苹果公司工作1314151天～",
    "日本語の文章です。カタカナとひらがなと漢字が混ざっています。東京は2024年も暑い。",
    "한국어 문장입니다. 오늘은 날씨가 좋습니다. 모델을 양자화합니다.",
    "مرحبا بالعالم، كيف حالك اليوم؟ النص العربي يُكتب من اليمين إلى اليسار.",
    "नमस्ते दुनिया, आज मौसम बहुत अच्छा है। मशीन लर्निंग के मॉडल।",
    "Съешь же ещё этих мягких французских булок, да выпей чаю. Нещо на Български.",
    "Ça été très agréable, naïve façade, Ångström, Über, größer, señor, mañana.",
    "Emoji: 🚀 (normal) 😶‍🌫️ 👨‍👩‍👧‍👦 👍🏽 🇺🇸 ✅ 🦙🦙 ❤️ 1️⃣",
    "def f(x, *, y=None):\n    return {k: v for k, v in x.items() if v != y}  # note\n\n\nclass A:\n\tpass\n",
    '<html>\n  <body class="a">&nbsp;x &lt; y</body>\r\n</html>\r\n\r\n',
    'for (int i = 0; i < 10; ++i) { printf("%d\\n", a[i]); }  /* done */',
)

SAMPLES = (
    "",
    " ",
    "  ",
    "   ",
    "\n",
    "\n\n\n",
    "\t",
    "\t\t \t",
    "\r\n",
    "a\r\nb\r\n\r\nc",
    "Hello",
    " Hello",
    "  Hello",
    "Hello ",
    "Hello   ",
    "Hello  world   again    and     again",
    "Hello\n\n  world\n\t\tagain \n",
    " \n \n  \n   x",
    "\n \n\n \n\n\n \t \t\t \t\n  \n   \n    \n     \nx",
    "x = 1\n    y = 2\n        z = 3\n",
    "def fib(n):\n\tif n < 2:\n\t\treturn n\n\treturn fib(n-1) + fib(n-2)\n",
    "if (a != b && c >= d) { x->y = *p++; } // ok",
    "3 33 333 3333 33333 333333 3333333 33333333 3.3 3..3 3...3",
    "1234567890123456789012345678901234567890",
    "3.14159, 2.718281828, -1e-10, 1,000,000.00",
    "a1b22c333d4444",
    "  1  22   333",
    "I'm, you're, he's, we've, they'll, I'd, don't; I'M, YOU'RE, HE'S, WE'VE, THEY'LL, I'D, DON'T",
    "'''quoted''' \"double\" `tick` ``````\"\"\"\"......!!!!!!?????? -- --- ------======= ~",
    "snake_case camelCase PascalCase SCREAMING_CASE kebab-case a.b.c/d\\e",
    "HTTPServer parseXMLFile iPhone eBay McDonald",
    "🚀 (normal) 😶‍🌫️ (multiple emojis concatenated) ✅ 🦙🦙",
    "👨‍👩‍👧‍👦👍🏽🇺🇸❤️1️⃣",
    "今天天气很好，我们去公园吧！",
    "我想在apple工作1314151天～",
    "日本語とカタカナとひらがな。ﾊﾝｶｸ",
    "한국어 문장입니다. ㄱㄴㄷ",
    "مرحبا بالعالم، كيف حالك؟ ١٢٣",
    "नमस्ते दुनिया। क्षत्रिय १२३",
    "កាន់តែពិសេសអាច ไทย ภาษา",
    "нещо на Български ЁЖ",
    "Ça été naïve façade Ångström größer",
    "a\u0300e\u0301\u0323 combining A\u030a",
    "zero\u200bwidth nbsp\u00a0here ideographic\u3000space",
    "½ ² Ⅷ ٣٤ \U0001d7d8\U0001d7d9",
    "\u2028line\u2029paragraph\u0085next",
    "\x00\x01\x1b[0m\x7f",
    "https://example.org/a?b=c&d=%20e#f",
    "<b>bold</b> &amp; <!-- comment -->",
    "ab" * 200,
    " " * 100 + "x",
    "\n" * 40,
)


def special_samples(first: str, second: str, third: str) -> tuple[str, ...]:
    """Texts with special tokens in them."""
    return (
        first,
        first + second,
        f"{first}Hello{second}",
        f"{first} Hello {second} ",
        f"a{first}\n\nb{second}\n",
        f"{first}user\nWhat's 12345 + 1?{second}\n{first}assistant\n",
        f"  {first}  x  {second}  ",
        f"{third}tool{third} {third}",
        f"broken {first[:-1]} and {second[1:]}",
    )


@cache
def training_text() -> tuple[str, ...]:
    """About 150 kB that comes with Python, and the multilingual sentences, often enough to leave tokens."""
    sources = "".join(inspect.getsource(module) for module in (inspect, json, keyword, textwrap))
    return (*sources[:150_000].splitlines(keepends=True), *(MULTILINGUAL * 30))


CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + TAIL
QWEN2 = CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + TAIL
QWEN35 = (
    CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*|\p{{N}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+{CONTRACTIONS}?|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*{CONTRACTIONS}?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DEEPSEEK3 = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLADA = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)


def _split(pattern: str, behavior: str = "isolated", invert: bool = False) -> Any:
    return pre_tokenizers.Split(Regex(pattern), behavior=behavior, invert=invert)


def _bytes(use_regex: bool = False) -> Any:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)


@dataclass(frozen=True)
class Family:
    """A family's way to cut text.

    Attributes:
        name: for the tests.
        pre: the name that llama.cpp must be given.
        steps: of the pre-tokenizer.
        nfc: whether the text is put in NFC first.
        ignore_merges: of the model.
        bos: whether a first token is put before the text.
        ascii_case: llama.cpp knows upper and lower case of ASCII letters only here, and no marks in words.
    """

    name: str
    pre: str
    steps: tuple[Any, ...]
    nfc: bool = False
    ignore_merges: bool = False
    bos: bool = False
    ascii_case: bool = False


FAMILIES = (
    Family("gpt2", "gpt-2", (_bytes(use_regex=True),)),
    Family("olmo", "gpt-2", (_bytes(use_regex=True),), nfc=True),
    Family("smollm", "smollm", (pre_tokenizers.Digits(individual_digits=True), _bytes(use_regex=True))),
    Family(
        "granite", "smollm", (pre_tokenizers.Digits(individual_digits=True), _bytes(use_regex=True)), bos=True
    ),
    Family("llama3", "llama-bpe", (_split(LLAMA3), _bytes()), ignore_merges=True, bos=True),
    Family("smollm3", "llama-bpe", (_split(LLAMA3), _bytes()), ignore_merges=True),
    Family("olmo2", "dbrx", (_split(LLAMA3, "removed", invert=True), _bytes())),
    Family("qwen2", "qwen2", (_split(QWEN2), _bytes()), nfc=True),
    Family("qwen35", "qwen35", (_split(QWEN35), _bytes()), nfc=True),
    Family("tekken", "tekken", (_split(TEKKEN), _bytes()), ignore_merges=True, bos=True, ascii_case=True),
    Family("gpt4o", "gpt-4o", (_split(GPT4O), _bytes()), ascii_case=True),
    Family(
        "falcon",
        "falcon",
        (
            pre_tokenizers.Punctuation("contiguous"),
            _bytes(use_regex=True),
            pre_tokenizers.Digits(individual_digits=False),
            _split("[0-9][0-9][0-9]"),
        ),
    ),
    Family(
        "deepseek-coder",
        "deepseek-coder",
        (
            _split("[\r\n]"),
            _split(r"\s?\p{L}+"),
            _split(r"\s?\p{P}+"),
            _split("[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"),
            pre_tokenizers.Digits(individual_digits=True),
            _bytes(),
        ),
    ),
    Family(
        "deepseek-v3",
        "deepseek-v3",
        (
            _split(r"\p{N}{1,3}"),
            _split("[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"),
            _split(DEEPSEEK3),
            _bytes(),
        ),
    ),
    Family("llada", "bailingmoe", (_split(LLADA), _bytes())),
)
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<pad>")


@cache
def trained(family: Family) -> str:
    """tokenizer.json of a byte-level tokenizer with this family's cut, 1,200 tokens."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=family.ignore_merges))
    if family.nfc:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = (
        family.steps[0] if len(family.steps) == 1 else pre_tokenizers.Sequence(list(family.steps))
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1200,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=list(SPECIAL_TOKENS),
        show_progress=False,
    )
    tokenizer.train_from_iterator(training_text(), trainer)
    tokenizer.add_tokens([AddedToken("<tool>", special=False, normalized=False)])
    return str(tokenizer.to_str())


def with_bos(document: Mapping[str, Any], bos: str) -> dict[str, Any]:
    """The tokenizer.json with a post-processor that puts a first token before the text."""
    ids = {entry["content"]: entry["id"] for entry in document["added_tokens"]}
    template = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {bos: {"id": bos, "ids": [ids[bos]], "tokens": [bos]}},
    }
    byte_level = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}
    return dict(document) | {"post_processor": {"type": "Sequence", "processors": [byte_level, template]}}


BYTE_TOKENS = tuple(f"<0x{value:02X}>" for value in range(256))


@cache
def _learned_pieces() -> tuple[str, ...]:
    """Pieces with ▁ for a space, the most useful first, then single letters; rare letters are left out."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=1000, limit_alphabet=350, show_progress=False)
    tokenizer.train_from_iterator(training_text(), trainer)
    pieces = sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1])
    merged = [text for text, _ in pieces if len(text) > 1]
    return (*merged, *(text for text, _ in pieces if len(text) == 1))


def scored_pieces(runs: bool) -> dict[str, float]:
    """Pieces of a SentencePiece model with their scores; `runs`: of spaces and line ends too, as in Gemma."""
    pieces: dict[str, float] = {}
    if runs:
        pieces |= {mark * length: 0.0 for mark in ("▁", "\n") for length in range(2, 17)}
        pieces["\n"] = -2000.0
    pieces |= {text: float(-rank) for rank, text in enumerate(_learned_pieces()) if text not in pieces}
    return pieces


def sentencepiece_document(
    specials: tuple[str, ...], normalizer: Any, pre_tokenizer: Any, *, runs: bool = False
) -> dict[str, Any]:
    """tokenizer.json as transformers converts it from a SentencePiece model.

    Merges are all cuts of a piece in two pieces, best score first, and of equal scores the longest left part.
    """
    scores = scored_pieces(runs)
    vocab = {text: token for token, text in enumerate((*specials, *BYTE_TOKENS, *scores))}
    cuts = [
        (score, cut, text)
        for text, score in scores.items()
        for cut in range(1, len(text))
        if text[:cut] in vocab and text[cut:] in vocab
    ]
    cuts.sort(key=lambda entry: (entry[0], entry[1]), reverse=True)
    model = models.BPE(
        vocab,
        [(text[:cut], text[cut:]) for _, cut, text in cuts],
        unk_token="<unk>",
        fuse_unk=True,
        byte_fallback=True,
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in specials])
    if runs:
        marks = [text for text, score in scores.items() if score == 0.0]
        tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in marks])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(steps)
    return dict(json.loads(tokenizer.to_str()))


def llama2_document(extra: tuple[AddedToken, ...] = ()) -> dict[str, Any]:
    """Llama 2's, Mistral 7B v0.1's, Phi-3's kind: ▁ before the text and after each special token."""
    normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    document = sentencepiece_document(("<unk>", "<s>", "</s>"), normalizer, None)
    tokenizer = Tokenizer.from_str(json.dumps(document))
    tokenizer.add_tokens(list(extra))
    return with_bos(json.loads(tokenizer.to_str()), "<s>")


def metaspace_document() -> dict[str, Any]:
    """Mistral 7B v0.3's and the newer Llama 2's kind: ▁ before the text only."""
    first = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    return with_bos(sentencepiece_document(("<unk>", "<s>", "</s>"), None, first), "<s>")


def gemma_document() -> dict[str, Any]:
    """Gemma's kind: no ▁ before the text; runs of spaces and of line ends are tokens."""
    specials = ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>")
    cut = pre_tokenizers.Split(" ", behavior="merged_with_previous")
    return with_bos(sentencepiece_document(specials, normalizers.Replace(" ", "▁"), cut, runs=True), "<bos>")


PHI3_TOKENS = tuple(
    AddedToken(text, special=True, normalized=False, rstrip=text != "<|endoftext|>")
    for text in ("<|endoftext|>", "<|assistant|>", "<|end|>", "<|user|>", "<|system|>")
)


def learned_document(prefix: bool) -> dict[str, Any]:
    """Plain text with ▁ and bytes, but merges learned from text: each token has one pair."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split("\n", behavior="isolated")
    trainer = trainers.BpeTrainer(
        vocab_size=1500, limit_alphabet=300, special_tokens=["<s>", *BYTE_TOKENS], show_progress=False
    )
    tokenizer.train_from_iterator(training_text(), trainer)
    document = dict(json.loads(tokenizer.to_str()))
    document["added_tokens"] = document["added_tokens"][:1]
    document["pre_tokenizer"] = None
    if prefix:
        prepend = {"type": "Prepend", "prepend": "▁"}
        document["normalizer"] = {"type": "Sequence", "normalizers": [prepend, document["normalizer"]]}
    return document


@cache
def gpt2_json() -> str:
    """tokenizer.json of the family gpt2."""
    return trained(FAMILIES[0])


def gpt2_document() -> dict[str, Any]:
    """A fresh copy of a small GPT-2-like tokenizer.json."""
    return dict(json.loads(gpt2_json()))


def write_model(directory: Path, document: dict[str, Any], config: dict[str, Any]) -> Path:
    """Write a directory with the two files of a tokenizer."""
    (directory / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")
    (directory / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return directory
