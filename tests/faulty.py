"""Middleware that makes a served teacher strict or unreliable; see `conftest.served`."""

import random
import socket
import struct

from aiohttp import web


def quota(images: int):
    """Answers so many images; a request that would pass that gets 429 and Retry-After: 3600."""
    left = images

    @web.middleware
    async def limited(request: web.Request, handler) -> web.StreamResponse:
        nonlocal left
        if not request.path.endswith("/infer"):
            return await handler(request)
        asked = (await request.json())["inputs"][0]["shape"][0]
        if asked > left:
            raise web.HTTPTooManyRequests(text="the quota is spent", headers={"Retry-After": "3600"})
        left -= asked
        return await handler(request)

    return limited


def failing(share: float, seed: int):
    """Fails this share of requests: with 503 and Retry-After, with 500, or with a reset after the work was done."""
    chance = random.Random(seed)

    @web.middleware
    async def unreliable(request: web.Request, handler) -> web.StreamResponse:
        fails = request.path.endswith("/infer") and chance.random() < share
        kind = chance.choice(("busy", "broken", "reset")) if fails else None
        if kind == "busy":
            raise web.HTTPServiceUnavailable(text="busy", headers={"Retry-After": str(chance.randrange(2))})
        if kind == "broken":
            raise web.HTTPInternalServerError(text="broken")
        reply = await handler(request)
        if kind == "reset" and request.transport is not None:
            # Closing with a linger of zero seconds sends a reset, as a crashed server or a firewall does.
            linger = struct.pack("ii", 1, 0)
            request.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            request.transport.abort()
        return reply

    return unreliable
