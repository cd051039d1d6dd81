"""Progress over HTTP, for ASGI servers: GET /207 is a line of text for each stage. BUNDLE is the bundle's folder."""

import asyncio
import os
import threading

from nextscale.runtime import Generator, NextscaleError

GENERATOR = Generator(os.environ["BUNDLE"])


async def application(scope, receive, send):
    if scope["type"] != "http":
        return
    lines, loop, cancel = asyncio.Queue(), asyncio.get_running_loop(), threading.Event()

    def generate():  # in a thread, so that the server goes on; ONNX Runtime does not hold Python's lock
        try:
            for stage in GENERATOR.stream([scope["path"].strip("/")], cancel=cancel):
                line = f"stage {stage.stage + 1} of {stage.num_stages}\n"
                loop.call_soon_threadsafe(lines.put_nowait, line)
        except NextscaleError as error:
            loop.call_soon_threadsafe(lines.put_nowait, f"error: {error}\n")
        loop.call_soon_threadsafe(lines.put_nowait, None)

    work = asyncio.create_task(asyncio.to_thread(generate))
    try:
        headers = [(b"content-type", b"text/plain; charset=utf-8")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        while (line := await lines.get()) is not None:
            await send({"type": "http.response.body", "body": line.encode(), "more_body": True})
        await send({"type": "http.response.body", "body": b""})
    finally:
        cancel.set()  # the client may have gone: no further stage is begun
        await work
