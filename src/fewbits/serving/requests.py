"""The bodies of requests as checked objects: what OpenAI's interface has, as far as it can be served.

Source: OpenAI's reference of chat completions and completions; top_k, min_p and repetition_penalty as vLLM names
them. What isn't known, or is asked to be what it can't be, is refused with what is allowed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fewbits.engine.sampling import Sampling
from fewbits.errors import RequestError
from fewbits.serving.fields import Fields, encodable, is_number, kind, refused, wrong
from fewbits.serving.messages import Message, read_messages
from fewbits.serving.token_choice import Adjustments
from fewbits.serving.tools import Tools, read_tools

_MAX_STOPS = 16
_MAX_CHOICES = 128
_MAX_TOP_LOGPROBS = 20
_MAX_BIASES = 1024
_COMPLETION_TOKENS = 16  # OpenAI's default where there is no end of an answer
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
        *("stream", "stream_options", "logprobs", "n", "response_format"),
        *("frequency_penalty", "presence_penalty", "logit_bias"),
    )
)
_CHAT = _SHARED | {
    *("messages", "max_completion_tokens", "top_logprobs", "tools", "tool_choice", "parallel_tool_calls"),
    *("modalities", "chat_template_kwargs"),
}
_TEXT = _SHARED | {"prompt", "best_of", "echo", "suffix"}


@dataclass(frozen=True)
class Parameters:
    """What both kinds of requests say.

    Attributes:
        model: the name of the model asked for.
        max_tokens: tokens to write at most; None: as many as the context has room for.
        stop: strings that end the answer, none of them empty.
        include_usage: tell how many tokens were used when streaming, too.
        top_logprobs: likely tokens told with each token; None: no logprobs.
        choices: answers to each prompt.
        schema: JSON schema that an answer must follow; None: any text.
    """

    model: str
    max_tokens: int | None
    sampling: Sampling
    adjustments: Adjustments
    stop: tuple[str, ...]
    stream: bool
    include_usage: bool
    top_logprobs: int | None
    choices: int
    schema: Mapping[str, Any] | None


@dataclass(frozen=True)
class ChatRequest:
    """A request for the next message of a conversation.

    Attributes:
        messages: see `read_messages`.
        tools: that may be called; None: none.
        template_variables: for the chat template, besides what it is always given.
    """

    messages: tuple[Message, ...]
    parameters: Parameters
    tools: Tools | None
    template_variables: Mapping[str, Any]


@dataclass(frozen=True)
class TextRequest:
    """A request to continue one or more prompts, each text or token ids; `echo`: tell them before their answers."""

    prompts: tuple[str | tuple[int, ...], ...]
    parameters: Parameters
    echo: bool


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
        raise RequestError("the body is not an object", found=kind(value), allowed="a JSON object")
    return value


def chat_request(body: Mapping[str, Any]) -> ChatRequest:
    """Check the body of a request to /v1/chat/completions.

    Raises:
        RequestError: something in it can't be served; the message names it and what is allowed.
    """
    fields = Fields(body, _CHAT)
    messages = read_messages(fields.get("messages"))
    fields.only("modalities", ["text"])
    top: int | None = None
    if fields.boolean("logprobs", False):
        top = fields.integer("top_logprobs", 0, 0, _MAX_TOP_LOGPROBS)
    elif fields.integer("top_logprobs", 0, 0, _MAX_TOP_LOGPROBS):
        raise refused("top_logprobs", "no logprobs", "with logprobs true")
    limit = fields.optional_integer("max_completion_tokens", 1)
    limit = fields.optional_integer("max_tokens", 1) if limit is None else limit
    variables = fields.get("chat_template_kwargs") or {}
    if not isinstance(variables, dict):
        raise refused("chat_template_kwargs", kind(variables), "an object")
    return ChatRequest(messages, _parameters(fields, limit, top), read_tools(fields), variables)


def text_request(body: Mapping[str, Any]) -> TextRequest:
    """Check the body of a request to /v1/completions.

    Raises:
        RequestError: as for `chat_request`.
    """
    fields = Fields(body, _TEXT)
    top = fields.optional_integer("logprobs", 0, _MAX_TOP_LOGPROBS)
    echo = fields.boolean("echo", False)
    limit = fields.integer("max_tokens", _COMPLETION_TOKENS, 0 if echo else 1)
    fields.only("suffix", "")
    parameters = _parameters(fields, limit, top)
    best_of = fields.integer("best_of", parameters.choices, 1)
    if best_of != parameters.choices:
        raise wrong("best_of", best_of, f"as many as n, {parameters.choices}")
    return TextRequest(_prompts(fields.get("prompt")), parameters, echo)


def _parameters(fields: Fields, max_tokens: int | None, top_logprobs: int | None) -> Parameters:
    model = fields.get("model")
    if not isinstance(model, str):
        raise wrong("model", model, "the name of a model that /v1/models lists")
    stream = fields.boolean("stream", False)
    options = fields.get("stream_options")
    if options is not None and not (stream and isinstance(options, dict)):
        raise wrong("stream_options", options, "an object, with stream true")
    option_fields = Fields(
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
        adjustments=Adjustments(
            frequency_penalty=fields.number("frequency_penalty", 0.0, -2.0, 2.0),
            presence_penalty=fields.number("presence_penalty", 0.0, -2.0, 2.0),
            bias=_biases(fields.get("logit_bias")),
        ),
        stop=_stops(fields.get("stop")),
        stream=stream,
        include_usage=option_fields.boolean("include_usage", False),
        top_logprobs=top_logprobs,
        choices=fields.integer("n", 1, 1, _MAX_CHOICES),
        schema=_schema(fields.get("response_format")),
    )


def _biases(biases: object) -> Mapping[int, float]:
    """By token; that the model has it is checked where the model is known."""
    allowed = f"an object of up to {_MAX_BIASES} token ids with numbers from -100 to 100"
    if biases is None:
        return {}
    if not isinstance(biases, dict) or len(biases) > _MAX_BIASES:
        raise refused("logit_bias", kind(biases), allowed)
    for token, bias in biases.items():
        # The limit of digits keeps int() away from what isn't a token anyway.
        if not (token.isdecimal() and token.isascii() and len(token) < 10):
            raise wrong("logit_bias", token, allowed)
        if not is_number(bias, (int, float)) or not -100 <= bias <= 100:
            raise wrong(f"logit_bias.{token}", bias, allowed)
    return {int(token): float(bias) for token, bias in biases.items()}


def _schema(form: object) -> Mapping[str, Any] | None:
    """The JSON schema that a response_format stands for."""
    if form is None:
        return None
    allowed = 'an object of type text, json_object or json_schema, the last with json_schema {"schema": …}'
    if not isinstance(form, dict):
        raise refused("response_format", kind(form), allowed)
    match form.get("type"):
        case "text":
            return None
        case "json_object":
            return {"type": "object"}
        case "json_schema":
            given = form.get("json_schema")
            schema = given.get("schema") if isinstance(given, dict) else None
            if not isinstance(schema, dict):
                raise wrong("response_format.json_schema", given, allowed)
            return schema
        case _:
            raise wrong("response_format", form, allowed)


def _prompts(prompt: object) -> tuple[str | tuple[int, ...], ...]:
    allowed = "text, a list of token ids, or a list of such prompts"
    if isinstance(prompt, str):
        return (encodable("prompt", prompt),)
    if isinstance(prompt, list) and prompt:
        if all(is_number(item, int) for item in prompt):
            return (tuple(prompt),)
        if all(isinstance(item, str) for item in prompt):
            return tuple(encodable("prompt", item) for item in prompt)
        if all(isinstance(item, list) and all(is_number(token, int) for token in item) for item in prompt):
            return tuple(tuple(item) for item in prompt)
    if prompt == []:
        raise RequestError("the prompt is empty", allowed=allowed, param="prompt")
    raise refused("prompt", kind(prompt), allowed)


def _stops(stop: object) -> tuple[str, ...]:
    listed: list[Any] = [] if stop is None else stop if isinstance(stop, list) else [stop]
    if len(listed) > _MAX_STOPS or not all(isinstance(item, str) and item for item in listed):
        raise wrong("stop", stop, f"a string, or a list of up to {_MAX_STOPS}, none of them empty")
    return tuple(encodable("stop", item) for item in listed)
