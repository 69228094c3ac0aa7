"""Conversations and texts to token ids, by what the model's file says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fewbits.checkpoint.gguf_tokenizer import GgufTokenizer
from fewbits.errors import EvaluationError, RequestError
from fewbits.language_model.text_tokenizer import render_conversation


class PromptReader:
    """Reads prompts; may be used by several threads at a time."""

    def __init__(self, tokenizer: GgufTokenizer, vocabulary: int) -> None:
        """A reader for one model; `vocabulary`: token ids are below it."""
        self._tokenizer = tokenizer
        self._vocabulary = vocabulary

    def conversation(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Token ids of a conversation in the model's chat markup, up to where the next answer begins.

        Raises:
            RequestError: the model has no chat template, or its template refuses these messages.
        """
        template = self._tokenizer.chat_template
        if not template:
            raise RequestError(
                "the model has no chat template", action="Use /v1/completions", param="messages"
            )
        try:
            text = render_conversation(
                template,
                messages,
                True,
                bos_token=self._text(self._tokenizer.bos_id),
                eos_token=self._text(self._tokenizer.eos_id),
            )
        except EvaluationError as error:
            raise RequestError(error.what, found=error.found, param="messages") from error
        return self._tokens(text, "messages")

    def prompt(self, prompt: str | Sequence[int]) -> list[int]:
        """Token ids of a text, in which names of control tokens count as those, or of ids taken as they are.

        Raises:
            RequestError: no tokens, or ids that the model doesn't have.
        """
        if isinstance(prompt, str):
            return self._tokens(prompt, "prompt")
        outside = [token for token in prompt if not 0 <= token < self._vocabulary]
        if outside:
            raise RequestError(
                "the prompt has token ids that the model doesn't have",
                found=outside[0],
                allowed=f"0 to {self._vocabulary - 1}",
                param="prompt",
            )
        return _not_empty(list(prompt), "prompt")

    def _tokens(self, text: str, param: str) -> list[int]:
        ids = self._tokenizer.encode(text, add_special=False)
        first = self._tokenizer.bos_id
        # Chat templates usually write the first token themselves.
        if self._tokenizer.add_bos and first is not None and ids[:1] != [first]:
            ids.insert(0, first)
        return _not_empty(ids, param)

    def _text(self, token: int | None) -> str:
        return "" if token is None else str(self._tokenizer.tokenizer.id_to_token(token) or "")


def _not_empty(ids: list[int], param: str) -> list[int]:
    if not ids:
        raise RequestError(
            "the prompt has no tokens", found="an empty prompt", allowed="one or more", param=param
        )
    return ids
