"""A teacher that fails in every way a server can, in a process of its own, and keeps book of every image it was asked.

Each image it works on is a line in LOG, on disk before a reply goes out: its hash, what became of it.
"""

import asyncio
import hashlib
import json
import os
import random
from collections.abc import Callable
from multiprocessing.connection import Connection

import numpy as np
from aiohttp import web

CLASSES = 3
BILLED = ("answered", "reset", "stalled", "garbage", "failed")
"""What this server would bill for: all it has worked on, whether the client heard of it or not."""


def probabilities(image: np.ndarray) -> list[float]:
    """What it answers to uint8 [1, H, W]: a function of the pixels alone."""
    digest = hashlib.blake2b(image.tobytes(), digest_size=CLASSES).digest()
    weights = np.frombuffer(digest, np.uint8).astype(np.float64) + 1
    return [float(np.float32(p)) for p in weights / weights.sum()]


def name(image: np.ndarray) -> str:
    """An image's name in the log."""
    return hashlib.blake2b(image.tobytes(), digest_size=8).hexdigest()


class Server:
    """Draws a fate for every request."""

    def __init__(self, seed: int, log: str) -> None:
        self._random = random.Random(seed)
        self._log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def _note(self, images: np.ndarray, fate: str) -> None:
        os.write(self._log, "".join(f"{name(image)} {fate}\n" for image in images).encode())

    async def about(self, request: web.Request) -> web.Response:
        """The model's metadata."""
        return web.json_response({"name": "m", "inputs": [], "outputs": []})

    async def infer(self, request: web.Request) -> web.StreamResponse:
        """Answer, or not."""
        body = await request.json()
        tensor = body["inputs"][0]
        images = np.array(tensor["data"], np.uint8).reshape(tensor["shape"])
        fate = self._random.choices(
            ["answer", "slow", "429", "503", "drop", "reset", "stall", "html", "rows", "500"],
            [55, 15, 5, 5, 4, 4, 2, 3, 4, 3],
        )[0]
        if fate in ("429", "503"):
            self._note(images, "refused")
            return web.json_response({"error": "later"}, status=int(fate), headers={"Retry-After": "0.05"})
        if fate == "drop":  # before it has looked at them
            self._note(images, "dropped")
            request.transport.abort()
            return web.Response()
        rows = [probabilities(image) for image in images]
        if fate == "reset":
            self._note(images, "reset")
            request.transport.abort()
            return web.Response()
        if fate == "stall":
            self._note(images, "stalled")
            await asyncio.sleep(30)
            return web.Response()
        if fate == "html":
            self._note(images, "garbage")
            return web.Response(text="<html>please log in</html>", content_type="text/html")
        if fate == "500":
            self._note(images, "failed")
            return web.json_response({"error": "out of memory"}, status=500)
        if fate == "rows":
            for row in rows[::2]:
                row[0] = self._random.choice([-1.0, 7.0])
            self._note(images[::2], "garbage")
            self._note(images[1::2], "answered")
        else:
            await asyncio.sleep(self._random.uniform(0.05, 0.2) if fate == "slow" else 0.01)
            self._note(images, "answered")
        flat = [number for row in rows for number in row]
        output = {"name": "p", "datatype": "FP32", "shape": [len(rows), CLASSES], "data": flat}
        return web.Response(text=json.dumps({"outputs": [output]}), content_type="application/json")


async def main(seed: int, log: str, ready: Callable[[int], None]) -> None:
    """Serve until killed; `ready` is told the port."""
    server = Server(seed, log)
    app = web.Application()
    app.router.add_get("/v2/models/m", server.about)
    app.router.add_post("/v2/models/m/infer", server.infer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    ready(runner.addresses[0][1])
    await asyncio.Event().wait()


def serve(seed: int, log: str, port: Connection) -> None:
    """What a process does that is a server: sends its port, and serves until killed."""
    asyncio.run(main(seed, log, port.send))
