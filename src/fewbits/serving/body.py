"""Reading a request's body, within limits."""

from __future__ import annotations

import asyncio

from starlette.requests import Request

from fewbits.errors import RequestError

_SECONDS = 60.0  # for a whole body
# Of a body that is too large so many times the limit is read, since many clients read no answer before.
_READ_ANYWAY = 16


async def read_body(request: Request, limit: int) -> bytes:
    """The body, at most `limit` bytes.

    Raises:
        RequestError: it is larger (413), or took too long (408).
    """
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(_SECONDS):
            async for part in request.stream():
                size += len(part)
                if size <= limit:
                    parts.append(part)
                else:
                    parts.clear()
                    if size > _READ_ANYWAY * limit:
                        break
    except TimeoutError:
        raise RequestError(
            "the body took too long", found=f"{size} bytes in {_SECONDS:g} s", status=408, code="timeout"
        ) from None
    if size > limit:
        raise RequestError(
            "the body is too large", found=f"more than {limit:,} bytes", allowed=f"{limit:,} bytes",
            status=413, code="body_too_large",
        )  # fmt: skip
    return b"".join(parts)
