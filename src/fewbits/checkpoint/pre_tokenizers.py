r"""How llama.cpp cuts text into words before byte-pair encoding, by the name a GGUF file gives it.

`tokenizer.ggml.pre` is only a name; what it stands for is written in llama.cpp's source
(src/llama-vocab.cpp, llm_tokenizer_bpe). This table gives each name the same cut as the steps that a
Hugging Face tokenizer.json spells, so it serves both ways: recognising a tokenizer.json when a GGUF file is
written, and building a tokenizer when one is read. Sources of the steps: llama.cpp's comments, which quote
the original patterns, transformers' tokenizers, and published tokenizer.json files.

To add an entry: read `pre_tokenizer` in the tokenizer.json, find the regular expressions in llama.cpp's
source that cut the same way, and write the steps below. tests/export/test_gguf_tokenizer.py compares every
entry's token ids with llama.cpp's, on merges that show any difference.

Names that llama.cpp has and that are missing here cut in ways that no tokenizer.json step expresses, or come
from a tokenizer.json that we haven't seen, or that llama.cpp itself only comes near: afmoe, chameleon,
kimi-k2, laguna, spark2_5, superbpe, tiny_aya, youtu.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple


class Step(NamedTuple):
    """One step of a pre-tokenizer.

    Attributes:
        kind: ``split`` at each match of a regular expression, the match being a word of its own; ``digits``
            (each one alone, or runs together); ``punctuation`` (runs together); ``bytes``: from here on the
            text is written in GPT-2's alphabet of 256 letters, one per byte.
        argument: the regular expression, or ``single`` / ``runs``.
    """

    kind: str
    argument: str = ""

    def to_json(self) -> dict[str, Any]:
        """The step as tokenizer.json writes it."""
        if self.kind == "split":
            pattern = {"Regex": self.argument}
            return {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}
        if self.kind == "digits":
            return {"type": "Digits", "individual_digits": self.argument == "single"}
        if self.kind == "punctuation":
            return {"type": "Punctuation", "behavior": "Contiguous"}
        return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


@dataclass(frozen=True)
class PreTokenizer:
    """A name of llama.cpp's and the steps it stands for.

    Attributes:
        name: what is written as `tokenizer.ggml.pre`.
        variants: spellings that cut alike on every text, or on all but the rarest; the first one is the
            closest to llama.cpp.
        ignore_merges: a word that is a token is taken whole, even where merges would not reach it.
        aliases: other names that llama.cpp treats the same.
        adds_bos: whether llama.cpp puts the first token when the file doesn't say.
        recognised: False for what is only read, never written.
        byte_level: False where tokens are plain text with ▁ for a space, and <0xXX> for bytes.
    """

    name: str
    variants: tuple[tuple[Step, ...], ...]
    ignore_merges: bool = False
    aliases: tuple[str, ...] = ()
    adds_bos: bool = False
    recognised: bool = True
    byte_level: bool = True


def split(pattern: str) -> Step:
    """A split by a regular expression."""
    return Step("split", pattern)


SINGLE_DIGITS, DIGIT_RUNS = Step("digits", "single"), Step("digits", "runs")
PUNCTUATION, BYTES = Step("punctuation"), Step("bytes")

# The pieces that the patterns are made of. L: letters, N: numbers, Z: white space.
CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_SIGNS_OR_SLASH = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_NOT_LOWER, _NOT_UPPER = r"(?:(?=\p{L})[^a-z])", r"(?:(?=\p{L})[^A-Z])"
_ASCII_SIGNS = r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]"""

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = "|".join((CONTRACTIONS, _WORD, r"\p{N}{1,3}", _SIGNS, _SPACES))
QWEN2 = "|".join((CONTRACTIONS, _WORD, r"\p{N}", _SIGNS, _SPACES))
_QWEN35 = "|".join(
    (CONTRACTIONS, r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+", r"\p{N}", r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*", _SPACES)
)


def _cased(upper: str, lower: str, after: str, numbers: str) -> str:
    """A pattern that cuts camelCase: words are upper case, then lower case."""
    word = r"[^\r\n\p{L}\p{N}]?"
    words = (f"{word}{upper}*{lower}+{after}", f"{word}{upper}+{lower}*{after}")
    return "|".join((*words, numbers, _SIGNS_OR_SLASH, _SPACES))


TEKKEN = _cased(_UPPER, _LOWER, "", r"\p{N}")
GPT4O = _cased(_UPPER, _LOWER, CONTRACTIONS + "?", r"\p{N}{1,3}")
# llama.cpp's stand-ins: letters beyond ASCII are upper and lower case at once, marks are no part of a word.
_TEKKEN_LLAMA_CPP = _cased(_NOT_LOWER, _NOT_UPPER, "", r"\p{N}")
_GPT4O_LLAMA_CPP = _cased(_NOT_LOWER, _NOT_UPPER, CONTRACTIONS + "?", r"\p{N}{1,3}")
_DEEPSEEK3 = "|".join(
    (
        rf"{_ASCII_SIGNS}[A-Za-z]+",
        r"[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+",
        r" ?[\p{P}\p{S}]+[\r\n]*",
        _SPACES,
    )
)
_BAILING = "|".join((CONTRACTIONS, _WORD, r"\p{N}", _SIGNS, r"\s*[\r\n]", r"\s+(?!\S)", r"\s+"))
_SEED = "|".join((CONTRACTIONS, _WORD, r"\p{N}", r" ?[^\s\p{L}\p{N}\r\n]+", _SPACES))
_EXAONE_MOE = "|".join(
    (
        CONTRACTIONS,
        r"[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+",
        r"\p{N}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]?",
        r"\s*[\r\n]",
        r"\s+(?!\S)",
        r"\s+",
    )
)
_JAIS2_SPACES = "|".join(rf"\s{{{n}}}(?!\S)" for n in (512, 256, 128, 64, 32, 16, 8, 4))
_JAIS2 = "|".join(
    (CONTRACTIONS, _WORD, r"\p{N}{1,3}", _SIGNS, r"\s*[\r\n]+", _JAIS2_SPACES, r"\s{1,2}(?!\S)", r"\s{1}")
)
_BLOOM = r" ?[^(\s|[.,!?…。，、।۔،])]+"  # noqa: RUF001 - the marks are meant
_CJK = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]"
_CJK_KANA = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
# Letters of scripts that have upper and lower case, as DeepSeek-LLM's tokenizer.json lists them;
# escaped because editors like to replace some of these by their look-alikes.
_CASED_LETTERS = (
    "A-Za-z\xb5\xc0-\xd6\xd8-\xf6\xf8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373\u0376"
    "\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481"
    "\u048a-\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf"
    "\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d"
    "\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4"
    "\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107"
    "\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f"
    "\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d"
    "\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17"
    "\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb"
    "\U00010c80-\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943"
)
_NEWLINES_APART = "[^\\n]+|[\\n]+"

# llama.cpp writes white space beyond ASCII as a vertical tab before it looks for ranges of letters, so that
# no range holds U+2028 or U+3000.
_NO_SPACE = r"(?!(?!\p{ASCII})\s)"


def _without_space(letters: str, guard: str) -> Step:
    """Split at runs of a class of letters, white space beyond ASCII left out where a guard is given."""
    return split(f"(?:{guard}{letters})+" if guard else f"{letters}+")


def _deepseek_llm(guard: str, digits: Step) -> tuple[Step, ...]:
    signs = r"[!-/:-~！-／：-～‘-‟　-。]"  # noqa: RUF001
    return (
        split(r"[\r\n]"),
        split(rf"\s?[{_CASED_LETTERS}]+"),
        split(rf"\s?(?:{guard}{signs})+" if guard else rf"\s?{signs}+"),
        split(r"\s+$"),
        _without_space(_CJK, guard),
        digits,
        BYTES,
    )


def _deepseek_coder(guard: str) -> tuple[Step, ...]:
    letters, signs = split(r"\s?\p{L}+"), split(r"\s?\p{P}+")
    return (split(r"[\r\n]"), letters, signs, _without_space(_CJK, guard), SINGLE_DIGITS, BYTES)


PRE_TOKENIZERS: tuple[PreTokenizer, ...] = (
    PreTokenizer(
        "llama-bpe",
        ((split(LLAMA3), BYTES),),
        ignore_merges=True,
        aliases=(
            *("llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"),
            "jina-v5-nano",
        ),
        adds_bos=True,
    ),
    PreTokenizer("dbrx", ((split(LLAMA3), BYTES),), aliases=("smaug-bpe", "chatglm-bpe")),
    PreTokenizer("glm4", ((split(LLAMA3), BYTES),), ignore_merges=True, aliases=("glm5",), recognised=False),
    PreTokenizer(
        "qwen2",
        ((split(QWEN2), BYTES),),
        aliases=(
            *("stablelm2", "deepseek-r1-qwen", "kormo", "f2llmv2", "megrez", "hunyuan", "solar-open"),
            "grok-2",
        ),
    ),
    PreTokenizer("qwen35", ((split(_QWEN35), BYTES),)),
    PreTokenizer(
        "gpt-2",
        ((split(GPT2), BYTES),),
        aliases=(
            *("phi-2", "mpt", "olmo", "jais", "trillion", "granite-docling", "gigachat", "a.x-4.0", "mellum"),
            *("modern-bert", "roberta-bpe", "jina-es", "jina-de", "jina-v1-en", "jina-v2-es", "jina-v2-de"),
            *("jina-v2-code", "exaone4"),
        ),
    ),
    PreTokenizer(
        "smollm",
        ((SINGLE_DIGITS, split(GPT2), BYTES), (split(r"\p{N}"), split(GPT2), BYTES)),
        aliases=("starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"),
    ),
    # Falcon looks for digits among the letters that stand for bytes, some of which look like ², ¼ and so on.
    PreTokenizer(
        "falcon",
        (
            (split(r"[\p{P}\$\+<=>\^~\|`]+"), split(GPT2), split("[0-9][0-9][0-9]"), BYTES),
            (PUNCTUATION, split(GPT2), BYTES, DIGIT_RUNS, split("[0-9][0-9][0-9]")),
        ),
    ),
    PreTokenizer(
        "deepseek-llm", (_deepseek_llm(_NO_SPACE, split(r"\p{N}+")), _deepseek_llm("", SINGLE_DIGITS))
    ),
    PreTokenizer("deepseek-coder", (_deepseek_coder(_NO_SPACE), _deepseek_coder(""))),
    PreTokenizer(
        "deepseek-v3",
        ((split(r"\p{N}{1,3}"), split(_CJK_KANA), split(_DEEPSEEK3), BYTES),),
        aliases=("hunyuan-dense", "joyai-llm", "hy_v4"),
    ),
    PreTokenizer(
        "tekken",
        ((split(_TEKKEN_LLAMA_CPP), BYTES), (split(TEKKEN), BYTES)),
        ignore_merges=True,
        adds_bos=True,
    ),
    PreTokenizer(
        "gpt-4o",
        ((split(_GPT4O_LLAMA_CPP), BYTES), (split(GPT4O), BYTES)),
        aliases=("llama4", "kanana2", "talkie", "minimax-m2"),
    ),
    PreTokenizer("bloom", ((split(_BLOOM), BYTES),), aliases=("poro-chat", "gpt3-finnish")),
    PreTokenizer("viking", ((split(_BLOOM), SINGLE_DIGITS, BYTES),)),
    PreTokenizer("bailingmoe", ((split(_BAILING), BYTES),), aliases=("bailingmoe2", "llada-moe")),
    PreTokenizer("seed-coder", ((split(_SEED), BYTES),)),
    PreTokenizer(
        "minicpm5",
        ((split(r"\p{N}{1,3}"), split(LLAMA3.replace("{1,3}", "+")), BYTES),),
        ignore_merges=True,
    ),
    PreTokenizer("exaone-moe", ((split(_EXAONE_MOE), BYTES),)),
    PreTokenizer("jais-2", ((split(_JAIS2), BYTES),)),
    PreTokenizer("ufakzeka", ((split(QWEN2.removeprefix(CONTRACTIONS + "|")), BYTES),)),
    PreTokenizer(
        "default",
        (
            (
                split(r"[\p{P}\$\+<=>\^~\|]+"),
                split(GPT2),
                split(r"\p{N}+"),
                split("[0-9][0-9][0-9]"),
                BYTES,
            ),
        ),
        recognised=False,
    ),
    PreTokenizer("sarvam-moe", ((split(_NEWLINES_APART),),), recognised=False, byte_level=False),
    PreTokenizer("gemma4", ((split(_NEWLINES_APART),),), recognised=False, byte_level=False, adds_bos=True),
)


def pre_tokenizer_named(name: str) -> PreTokenizer | None:
    """The entry with this name or alias, None if there is none."""
    return next((entry for entry in PRE_TOKENIZERS if name == entry.name or name in entry.aliases), None)


def steps_json(steps: Iterable[Step]) -> dict[str, Any]:
    """Steps as the `pre_tokenizer` of a tokenizer.json."""
    return {"type": "Sequence", "pretokenizers": [step.to_json() for step in steps]}
