"""Answers in the shapes that OpenAI's clients read. Source: OpenAI's reference of chat completions and completions."""

from __future__ import annotations

import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fewbits.errors import RequestError
from fewbits.serving.call_reader import Call
from fewbits.serving.completion import Finished, FinishReason, TokenLogprob

Json = dict[str, Any]
_INCOMPLETE = "\ufffd"


def error_body(message: str, kind: str, code: str | None = None, param: str | None = None) -> Json:
    """An error's body."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def request_error_body(error: RequestError) -> Json:
    """The body for a refused request."""
    return error_body(str(error), error.kind, error.code, error.param)


def usage(finished: Mapping[int, Finished], choices: int) -> Json:
    """What the answers to one request took together.

    Args:
        finished: the answers by index.
        choices: answers to each prompt, which is counted once.
    """
    prompts = [answer for index, answer in finished.items() if index % choices == 0]
    read = sum(answer.prompt_tokens for answer in prompts)
    written = sum(answer.written_tokens for answer in finished.values())
    return {
        "prompt_tokens": read,
        "completion_tokens": written,
        "total_tokens": read + written,
        "prompt_tokens_details": {"cached_tokens": sum(answer.cached_tokens for answer in prompts)},
    }


class Answer(ABC):
    """The head that all chunks and the whole of one answer share, and what differs between endpoints."""

    _prefix: str
    _whole_object: str
    _chunk_object: str

    def __init__(self, model: str, token_bytes: Callable[[int], bytes]) -> None:
        self._token_bytes = token_bytes
        self._head = {
            "id": f"{self._prefix}-{secrets.token_hex(12)}", "created": int(time.time()), "model": model
        }  # fmt: skip

    def whole(self, choices: Sequence[Json], used: Json) -> Json:
        """The body of an answer that isn't streamed; `used`: see `usage`."""
        return {**self._head, "object": self._whole_object, "choices": list(choices), "usage": used}

    def chunk(self, choice: Json, *, with_usage: bool) -> Json:
        """One event of a stream; `with_usage`: usage will be told in the last."""
        no_usage: Json = {"usage": None} if with_usage else {}
        return {**self._head, "object": self._chunk_object, "choices": [choice], **no_usage}

    def usage_chunk(self, used: Json) -> Json:
        """The last event of a stream that was asked to include usage."""
        return {**self._head, "object": self._chunk_object, "choices": [], "usage": used}

    def opening(self, index: int) -> Json | None:
        """A choice that begins a stream, if this kind of stream has one."""
        del index
        return None

    @abstractmethod
    def choice(
        self, index: int, text: str, calls: Sequence[Call], logprobs: Json | None, reason: FinishReason
    ) -> Json:
        """A whole choice."""

    @abstractmethod
    def part(
        self,
        index: int,
        text: str,
        calls: Sequence[Call],
        calls_before: int,
        logprobs: Json | None,
        reason: FinishReason | None,
    ) -> Json:
        """A part of a choice that is streamed; `calls_before`: calls in earlier parts."""

    @abstractmethod
    def logprobs(self, tokens: Sequence[TokenLogprob], offset: int) -> Json:
        """Logprobs of some tokens; `offset`: letters of the choice before them."""

    def letters(self, tokens: Sequence[TokenLogprob]) -> int:
        """Letters of some tokens together, for the next offset."""
        return sum(len(self._token(token.token)) for token in tokens)

    def _token(self, token: int) -> str:
        return self._token_bytes(token).decode("utf-8", "replace")


class ChatAnswer(Answer):
    """/v1/chat/completions."""

    _prefix, _whole_object, _chunk_object = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def opening(self, index: int) -> Json:
        """See `Answer`."""
        delta = {"role": "assistant", "content": ""}
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}

    def choice(
        self, index: int, text: str, calls: Sequence[Call], logprobs: Json | None, reason: FinishReason
    ) -> Json:
        """See `Answer`."""
        message: Json = {"role": "assistant", "content": text, "refusal": None}
        if calls:
            message |= {"content": text or None, "tool_calls": [_call(call) for call in calls]}
        return {
            "index": index, "message": message, "logprobs": logprobs, "finish_reason": _reason(reason, bool(calls))
        }  # fmt: skip

    def part(
        self,
        index: int,
        text: str,
        calls: Sequence[Call],
        calls_before: int,
        logprobs: Json | None,
        reason: FinishReason | None,
    ) -> Json:
        """See `Answer`."""
        delta: Json = {"content": text} if text or not (reason or calls) else {}
        if calls:
            delta["tool_calls"] = [{"index": calls_before + i, **_call(call)} for i, call in enumerate(calls)]
        told = reason and _reason(reason, bool(calls_before or calls))
        return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": told}

    def logprobs(self, tokens: Sequence[TokenLogprob], offset: int) -> Json:
        """See `Answer`."""
        del offset
        content = [
            self._entry(token.token, token.logprob)
            | {"top_logprobs": [self._entry(likely, logprob) for likely, logprob in token.top]}
            for token in tokens
        ]
        return {"content": content, "refusal": None}

    def _entry(self, token: int, logprob: float | None) -> Json:
        return {
            "token": self._token(token), "bytes": list(self._token_bytes(token)), "logprob": logprob
        }  # fmt: skip


class TextAnswer(Answer):
    """/v1/completions."""

    _prefix, _whole_object, _chunk_object = "cmpl", "text_completion", "text_completion"

    def choice(
        self, index: int, text: str, calls: Sequence[Call], logprobs: Json | None, reason: FinishReason
    ) -> Json:
        """See `Answer`."""
        return self.part(index, text, calls, 0, logprobs, reason)

    def part(
        self,
        index: int,
        text: str,
        calls: Sequence[Call],
        calls_before: int,
        logprobs: Json | None,
        reason: FinishReason | None,
    ) -> Json:
        """See `Answer`."""
        del calls, calls_before  # there are none here
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}

    def logprobs(self, tokens: Sequence[TokenLogprob], offset: int) -> Json:
        """See `Answer`."""
        texts = [self._token(token.token) for token in tokens]
        offsets = []
        for text in texts:
            offsets.append(offset)
            offset += len(text)
        top: list[Mapping[str, float] | None] = []
        for token in tokens:
            if token.logprob is None:
                top.append(None)
                continue
            likely: dict[str, float] = {}
            for other, logprob in token.top:  # best first; parts of characters look alike
                likely.setdefault(self._token(other), logprob)
            top.append(likely)
        return {
            "tokens": texts,
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": top,
            "text_offset": offsets,
        }


def _call(call: Call) -> Json:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": call.id, "type": "function", "function": function}


def _reason(reason: FinishReason, called: bool) -> str:
    """An answer with calls that isn't cut off waits for their results."""
    return "tool_calls" if called and reason == "stop" else reason
