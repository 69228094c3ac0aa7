"""The bodies of requests as checked objects: what OpenAI's interface has, as far as it can be served.

Source: OpenAI's reference of chat completions and completions; top_k, min_p and repetition_penalty as vLLM names
them. What isn't known, or is asked to be what it can't be, is refused with what is allowed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any

from fewbits.engine.sampling import Sampling
from fewbits.errors import RequestError

_MAX_STOPS = 16
_MAX_TOP_LOGPROBS = 20
_COMPLETION_TOKENS = 16  # OpenAI's default where there is no end of an answer
# Told by clients to a service with accounts; nothing here depends on them.
_IGNORED = frozenset(
    (
        "user",
        "metadata",
        "store",
        "service_tier",
        "safety_identifier",
        "prompt_cache_key",
        "parallel_tool_calls",
    )
)
# Not served, but harmless at the values that mean "not".
_ONLY: Mapping[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "response_format": ({"type": "text"},),
}
_SHARED = frozenset(
    (
        *(
            "model",
            "max_tokens",
            "temperature",
            "top_p",
            "top_k",
            "min_p",
            "repetition_penalty",
            "seed",
            "stop",
        ),
        *("stream", "stream_options", "logprobs", "n"),
        *("frequency_penalty", "presence_penalty", "logit_bias"),
    )
)
_CHAT = _SHARED | {
    *("messages", "max_completion_tokens", "top_logprobs", "tools", "tool_choice", "response_format"),
}
_TEXT = _SHARED | {"prompt", "best_of", "echo", "suffix"}
_ROLES = ("system", "developer", "user", "assistant", "tool")


@dataclass(frozen=True)
class Parameters:
    """What both kinds of requests say.

    Attributes:
        model: the name of the model asked for.
        max_tokens: tokens to write at most; None: as many as the context has room for.
        stop: strings that end the answer, none of them empty.
        include_usage: tell how many tokens were used when streaming, too.
        top_logprobs: likely tokens told with each token; None: no logprobs.
    """

    model: str
    max_tokens: int | None
    sampling: Sampling
    stop: tuple[str, ...]
    stream: bool
    include_usage: bool
    top_logprobs: int | None


@dataclass(frozen=True)
class ChatRequest:
    """A request for the next message of a conversation: ``role`` and ``content`` (text) of each before it."""

    messages: tuple[Mapping[str, str], ...]
    parameters: Parameters


@dataclass(frozen=True)
class TextRequest:
    """A request to continue one or more prompts, each text or token ids."""

    prompts: tuple[str | tuple[int, ...], ...]
    parameters: Parameters


def parse_json(body: bytes) -> Mapping[str, Any]:
    """The JSON object in a body.

    Raises:
        RequestError: the body is something else.
    """
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        reason = str(error) if isinstance(error, json.JSONDecodeError) else type(error).__name__
        raise RequestError("the body is not JSON", found=reason, allowed="a JSON object in UTF-8") from None
    if not isinstance(value, dict):
        raise RequestError("the body is not an object", found=_kind(value), allowed="a JSON object")
    return value


def chat_request(body: Mapping[str, Any]) -> ChatRequest:
    """Check the body of a request to /v1/chat/completions.

    Raises:
        RequestError: something in it can't be served; the message names it and what is allowed.
    """
    fields = _Fields(body, _CHAT)
    listed = fields.get("messages")
    if not isinstance(listed, list) or not listed:
        raise _wrong("messages", listed, "a list of one message or more")
    messages = tuple(_message(f"messages[{i}]", message) for i, message in enumerate(listed))
    top: int | None = None
    if fields.boolean("logprobs", False):
        top = fields.integer("top_logprobs", 0, 0, _MAX_TOP_LOGPROBS)
    elif fields.integer("top_logprobs", 0, 0, _MAX_TOP_LOGPROBS):
        raise _refused("top_logprobs", "no logprobs", "with logprobs true")
    limit = fields.optional_integer("max_completion_tokens", 1)
    limit = fields.optional_integer("max_tokens", 1) if limit is None else limit
    return ChatRequest(messages, _parameters(fields, limit, top))


def text_request(body: Mapping[str, Any]) -> TextRequest:
    """Check the body of a request to /v1/completions.

    Raises:
        RequestError: as for `chat_request`.
    """
    fields = _Fields(body, _TEXT)
    top = fields.optional_integer("logprobs", 0, _MAX_TOP_LOGPROBS)
    limit = fields.integer("max_tokens", _COMPLETION_TOKENS, 1)
    return TextRequest(_prompts(fields.get("prompt")), _parameters(fields, limit, top))


def _parameters(fields: _Fields, max_tokens: int | None, top_logprobs: int | None) -> Parameters:
    model = fields.get("model")
    if not isinstance(model, str):
        raise _wrong("model", model, "the name of a model that /v1/models lists")
    stream = fields.boolean("stream", False)
    options = fields.get("stream_options")
    if options is not None and not (stream and isinstance(options, dict)):
        raise _wrong("stream_options", options, "an object, with stream true")
    option_fields = _Fields(
        options or {}, frozenset(("include_usage", "include_obfuscation")), "stream_options."
    )
    seed = fields.optional_integer("seed", -(1 << 63), (1 << 63) - 1)
    top_p = fields.number("top_p", 1.0, 0.0, 1.0)
    sampling = Sampling(
        temperature=fields.number("temperature", 1.0, 0.0, 100.0),
        top_k=max(0, fields.integer("top_k", 0, -1, (1 << 31) - 1)) if top_p else 1,
        top_p=top_p or 1.0,
        min_p=fields.number("min_p", 0.0, 0.0, 1.0),
        repetition_penalty=fields.number("repetition_penalty", 1.0, 0.01, 100.0),
        seed=None if seed is None else seed % (1 << 64),
    )
    return Parameters(
        model=model,
        max_tokens=max_tokens,
        sampling=sampling,
        stop=_stops(fields.get("stop")),
        stream=stream,
        include_usage=option_fields.boolean("include_usage", False),
        top_logprobs=top_logprobs,
    )


class _Fields:
    """The fields of an object, each checked as it is read; null is the same as absent."""

    def __init__(self, body: Mapping[str, Any], known: frozenset[str], prefix: str = "") -> None:
        self._body = body
        self._prefix = prefix
        for name, value in body.items():
            if name not in known | _IGNORED:
                raise RequestError(
                    f"the parameter {prefix}{name} is not known",
                    allowed=", ".join(sorted(known)),
                    code="unknown_parameter",
                    param=f"{prefix}{name}",
                )
            if value is not None and name in _ONLY and not any(value == usual for usual in _ONLY[name]):
                raise _wrong(f"{prefix}{name}", value, " or ".join(map(json.dumps, _ONLY[name])))

    def get(self, name: str) -> Any:
        return self._body.get(name)

    def boolean(self, name: str, default: bool) -> bool:
        value = self.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise _wrong(self._prefix + name, value, "true or false")
        return value

    def number(self, name: str, default: float, least: float, most: float) -> float:
        value = self.get(name)
        if value is None:
            return default
        if not _is(value, (int, float)) or not isfinite(value) or not least <= value <= most:
            raise _wrong(self._prefix + name, value, f"{least:g} to {most:g}")
        return float(value)

    def integer(self, name: str, default: int, least: int, most: int | None = None) -> int:
        value = self.optional_integer(name, least, most)
        return default if value is None else value

    def optional_integer(self, name: str, least: int, most: int | None = None) -> int | None:
        value = self.get(name)
        if value is None:
            return None
        if not _is(value, int) or value < least or (most is not None and value > most):
            allowed = (
                f"an integer of {least} or more" if most is None else f"an integer from {least} to {most}"
            )
            raise _wrong(self._prefix + name, value, allowed)
        return int(value)


def _message(param: str, message: object) -> Mapping[str, str]:
    if not isinstance(message, dict):
        raise _refused(param, _kind(message), "an object with role and content")
    role = message.get("role")
    if role not in _ROLES:
        raise _wrong(f"{param}.role", role, ", ".join(_ROLES))
    if message.get("tool_calls") or message.get("function_call"):
        raise _refused(f"{param}.tool_calls", "calls of tools", "messages of text")
    # Models know the role by the name that it had before.
    return {
        "role": "system" if role == "developer" else role,
        "content": _content(f"{param}.content", message.get("content")),
    }


def _content(param: str, content: object) -> str:
    if isinstance(content, str):
        return _encodable(param, content)
    allowed = 'a string, or a list of parts {"type": "text", "text": …}'
    if not isinstance(content, list):
        raise _refused(param, _kind(content), allowed)
    texts = []
    for part in content:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise _wrong(param, part, allowed)
        texts.append(_encodable(param, part["text"]))
    return "".join(texts)


def _prompts(prompt: object) -> tuple[str | tuple[int, ...], ...]:
    allowed = "text, a list of token ids, or a list of such prompts"
    if isinstance(prompt, str):
        return (_encodable("prompt", prompt),)
    if isinstance(prompt, list) and prompt:
        if all(_is(item, int) for item in prompt):
            return (tuple(prompt),)
        if all(isinstance(item, str) for item in prompt):
            return tuple(_encodable("prompt", item) for item in prompt)
        if all(isinstance(item, list) and all(_is(token, int) for token in item) for item in prompt):
            return tuple(tuple(item) for item in prompt)
    if prompt == []:
        raise RequestError("the prompt is empty", allowed=allowed, param="prompt")
    raise _refused("prompt", _kind(prompt), allowed)


def _stops(stop: object) -> tuple[str, ...]:
    listed: list[Any] = [] if stop is None else stop if isinstance(stop, list) else [stop]
    if len(listed) > _MAX_STOPS or not all(isinstance(item, str) and item for item in listed):
        raise _wrong("stop", stop, f"a string, or a list of up to {_MAX_STOPS}, none of them empty")
    return tuple(_encodable("stop", item) for item in listed)


def _encodable(param: str, text: str) -> str:
    """The text, unless JSON made halves of characters of it."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise _refused(param, "half of a surrogate pair", "text that can be written in UTF-8") from None
    return text


def _is(value: object, kinds: type | tuple[type, ...]) -> bool:
    """Whether it is a number of this kind; true and false are none."""
    return isinstance(value, kinds) and not isinstance(value, bool)


def _wrong(param: str, value: object, allowed: str) -> RequestError:
    text = json.dumps(value, ensure_ascii=False)
    return _refused(param, text if len(text) <= 80 else text[:79] + "…", allowed)


def _refused(param: str, found: str, allowed: str) -> RequestError:
    return RequestError(f"{param} can't be served", found=found, allowed=allowed, param=param)


def _kind(value: object) -> str:
    names: Mapping[type, str] = {dict: "an object", list: "a list", str: "a string", bool: "true or false"}
    return "null" if value is None else names.get(type(value), "a number")
