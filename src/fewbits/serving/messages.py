"""The messages of a conversation, as chat templates take them.

Source: OpenAI's reference of chat completions; what templates read of them: transformers' guide to tool use.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fewbits.serving.fields import encodable, kind, refused, wrong

_ROLES = ("system", "developer", "user", "assistant", "tool")
Message = Mapping[str, Any]


def read_messages(messages: object) -> tuple[Message, ...]:
    """Check a conversation.

    Returns:
        ``role`` and ``content`` (text) of each message; of calls and results of tools also ``tool_calls`` (arguments as
        objects), ``tool_call_id`` and ``name``.

    Raises:
        RequestError: something in it can't be served.
    """
    if not isinstance(messages, list) or not messages:
        raise wrong("messages", messages, "a list of one message or more")
    return tuple(_message(f"messages[{i}]", message) for i, message in enumerate(messages))


def _message(param: str, message: object) -> Message:
    if not isinstance(message, dict):
        raise refused(param, kind(message), "an object with role and content")
    role = message.get("role")
    if role not in _ROLES:
        raise wrong(f"{param}.role", role, ", ".join(_ROLES))
    if message.get("function_call"):
        raise refused(f"{param}.function_call", "a call of a function", "tool_calls")
    # Models know the role by the name that it had before.
    read: dict[str, Any] = {"role": "system" if role == "developer" else role}
    content = message.get("content")
    calls = message.get("tool_calls")
    if calls and role != "assistant":
        raise refused(f"{param}.tool_calls", f"calls by {role}", "calls by assistant")
    read["content"] = "" if calls and content is None else _content(f"{param}.content", content)
    if calls:
        read["tool_calls"] = _calls(f"{param}.tool_calls", calls)
    for name in ("tool_call_id", "name"):
        if message.get(name) is not None:
            read[name] = _text(f"{param}.{name}", message[name])
    return read


def _content(param: str, content: object) -> str:
    if isinstance(content, str):
        return encodable(param, content)
    allowed = 'a string, or a list of parts {"type": "text", "text": …}'
    if not isinstance(content, list):
        raise refused(param, kind(content), allowed)
    texts = []
    for part in content:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise wrong(param, part, allowed)
        texts.append(encodable(param, part["text"]))
    return "".join(texts)


def _calls(param: str, calls: object) -> list[Mapping[str, Any]]:
    if not isinstance(calls, list):
        raise refused(param, kind(calls), "a list of calls")
    return [_call(f"{param}[{i}]", call) for i, call in enumerate(calls)]


def _call(param: str, call: object) -> Mapping[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(call, dict) or not isinstance(function, dict):
        raise wrong(param, call, 'an object with id, type "function" and function')
    return {
        "id": _text(f"{param}.id", call.get("id")),
        "type": "function",
        "function": {
            "name": _text(f"{param}.function.name", function.get("name")),
            "arguments": _arguments(f"{param}.function.arguments", function.get("arguments")),
        },
    }


def _arguments(param: str, arguments: object) -> Mapping[str, Any]:
    """The object that a JSON text holds: templates write arguments as objects."""
    text = _text(param, arguments)
    allowed = "a JSON object in a string"
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError):
        raise wrong(param, text, allowed) from None
    if not isinstance(value, dict):
        raise wrong(param, text, allowed)
    return value


def _text(param: str, value: object) -> str:
    if not isinstance(value, str):
        raise refused(param, kind(value), "a string")
    return encodable(param, value)
