"""What a request says of tools. Source: OpenAI's reference of chat completions."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from fewbits.serving.fields import Fields, encodable, kind, refused, wrong

_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_MOST = 128


@dataclass(frozen=True)
class Tool:
    """A function that the model may ask for.

    Attributes:
        definition: as it was given, which is what chat templates take.
        parameters: JSON schema of its arguments, an object's.
    """

    name: str
    definition: Mapping[str, Any]
    parameters: Mapping[str, Any]


@dataclass(frozen=True)
class Tools:
    """The tools of a request.

    Attributes:
        listed: what the model is told of.
        callable: those of them that it may call, one at least.
        required: whether it must call one.
        parallel: whether it may call more than one at a time.
    """

    listed: tuple[Tool, ...]
    callable: tuple[Tool, ...]
    required: bool = False
    parallel: bool = True


def read_tools(fields: Fields) -> Tools | None:
    """The tools that a request offers; None if there are none, or none may be called.

    Raises:
        RequestError: a tool that isn't a function with a name and a schema, or a choice that can't be.
    """
    listed = fields.get("tools") or []
    if not isinstance(listed, list) or len(listed) > _MOST:
        raise refused("tools", kind(listed), f"a list of up to {_MOST} functions")
    read = tuple(_tool(f"tools[{i}]", tool) for i, tool in enumerate(listed))
    names = [tool.name for tool in read]
    for i, name in enumerate(names):
        if name in names[:i]:
            raise refused(f"tools[{i}].function.name", f"{name} a second time", "names that differ")
    parallel = fields.boolean("parallel_tool_calls", True)
    choice = fields.get("tool_choice")
    if choice in (None, "none", "auto") and not read:
        return None
    if not read:
        raise refused("tool_choice", "no tools", "tools to choose from")
    return _chosen(Tools(read, read, parallel=parallel), choice)


def _chosen(tools: Tools, choice: object) -> Tools | None:
    if choice == "none":
        return None
    if choice in (None, "auto"):
        return tools
    if choice == "required":
        return replace(tools, required=True)
    names = [tool.name for tool in tools.listed]
    allowed = (
        f'none, auto, required, or {{"type": "function", "function": {{"name": …}}}} with {", ".join(names)}'
    )
    function = choice.get("function") if isinstance(choice, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    if name not in names:
        raise wrong("tool_choice", choice, allowed)
    only = tuple(tool for tool in tools.listed if tool.name == name)
    return replace(tools, callable=only, required=True, parallel=False)


def _tool(param: str, tool: object) -> Tool:
    function = tool.get("function") if isinstance(tool, dict) else None
    if not isinstance(tool, dict) or tool.get("type") != "function" or not isinstance(function, dict):
        raise wrong(param, tool, '{"type": "function", "function": {"name", "description", "parameters"}}')
    name = function.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise wrong(f"{param}.function.name", name, "1 to 64 letters, digits, _ and -")
    description = function.get("description")
    if description is not None and not isinstance(description, str):
        raise refused(f"{param}.function.description", kind(description), "a string")
    encodable(f"{param}.function.description", description or "")
    parameters = function.get("parameters")
    if parameters is None:
        parameters = {"type": "object", "properties": {}}
    if not isinstance(parameters, dict) or parameters.get("type", "object") != "object":
        raise wrong(f"{param}.function.parameters", parameters, "the JSON schema of an object")
    definition = {"name": name, "description": description or "", "parameters": parameters}
    return Tool(name, {"type": "function", "function": definition}, {"type": "object", **parameters})
