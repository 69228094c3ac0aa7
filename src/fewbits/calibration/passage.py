"""A piece of text to calibrate on."""

from __future__ import annotations

from dataclasses import dataclass

from fewbits.language_model.text_tokenizer import TextTokenizer


@dataclass(frozen=True)
class Passage:
    """Text, and whether names of special tokens in it mean those tokens, as in a chat template's markup."""

    text: str
    markup: bool = False

    def tokens(self, tokenizer: TextTokenizer) -> list[int]:
        """Its token ids, without beginning and end."""
        return tokenizer.encode(self.text, markup=self.markup)
