"""The server: one folder of its own, a guard before Gradio, and a quiet end."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any, cast

from wetok.app.photos import Limits
from wetok.config import WetokError

BUSY = "Many people are here just now. Please try again in a minute."
_SESSIONS = 64  # visitors whose pictures are kept; beyond, the oldest start anew


@contextmanager
def own_folder() -> Iterator[Path]:
    """A temporary folder for everything that the page keeps; gone afterwards.

    Gradio reads where its files belong from the environment, and whether it may call home: this
    must come before it is imported.
    """
    with TemporaryDirectory(prefix="wetok-app-", ignore_cleanup_errors=True) as name:
        folder = Path(os.path.realpath(name))
        os.environ["GRADIO_TEMP_DIR"] = str(folder / "files")
        os.environ["GRADIO_EXAMPLES_CACHE"] = str(folder / "examples")
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        os.environ["GRADIO_SSR_MODE"] = "False"
        os.environ["GRADIO_MCP_SERVER"] = "False"
        os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
        yield folder


def listen(host: str, port: int) -> socket.socket:
    """A socket at that address.

    Raises:
        WetokError: the port is in use, or there is no such address here.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, OverflowError, UnicodeError) as error:
        raise WetokError(f"--host {host}: no such address: {error}") from None
    found = socket.socket(family, kind, protocol)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        found.listen(128)
    except OSError as error:
        found.close()
        if error.errno in (98, 48, 10048):  # EADDRINUSE of Linux, macOS, Windows
            raise WetokError(
                f"--port {port}: in use at {host}; give another, or 0 for any that is free"
            ) from None
        raise WetokError(f"--host {host} --port {port}: {error.strerror}") from None
    return found


def application(page: Any, folder: Path, limits: Limits) -> Any:
    """The page as an ASGI application, behind the guard.

    Args:
        page: from `wetok.app.page.build`.
        folder: from `own_folder`.
    """
    import fastapi
    import gradio as gr

    from wetok.app.guard import App, Guard
    from wetok.app.page import CSS, theme

    # A mounted page counts as not yet launched, and Gradio would then take any path for an upload.
    page.has_launched = True
    page.state_session_capacity = _SESSIONS
    _speak_politely(page._queue)
    app = gr.mount_gradio_app(
        fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None),
        page,
        path="",
        footer_links=[],
        run_history=False,
        allowed_paths=[],
        show_error=False,
        max_file_size=limits.max_bytes,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        theme=theme(),
        # Given as `css`, Gradio would put a prefix before each rule, and miss those of phones.
        head=f"<style>{CSS.read_text('utf-8')}</style>",
    )
    return Guard(cast(App, app), folder, limits.max_bytes)


def serve(app: Any, listening: socket.socket, ready: Callable[[], None] = lambda: None) -> None:
    """Serves until the process is asked to end (SIGINT, SIGTERM); `ready` is called before."""
    import uvicorn

    class Server(uvicorn.Server):
        @contextmanager
        def capture_signals(self) -> Iterator[None]:
            def end(number: int, frame: FrameType | None) -> None:
                self.force_exit = self.should_exit  # twice: at once
                self.should_exit = True

            before = {one: signal.signal(one, end) for one in (signal.SIGINT, signal.SIGTERM)}
            try:
                yield
            finally:
                for one, handler in before.items():
                    signal.signal(one, handler)

    config = uvicorn.Config(
        app,
        log_level="critical",
        access_log=False,
        timeout_graceful_shutdown=1,
        server_header=False,
        ws="none",
    )
    ready()
    Server(config).run(sockets=[listening])


def _speak_politely(queue: Any) -> None:
    """Gradio tells a visitor who comes when the queue is full how long it is, and no more."""
    plain = queue.push

    async def push(*arguments: Any, **named: Any) -> Any:
        done, text, state = await plain(*arguments, **named)
        return done, BUSY if state == "queue_full" else text, state

    queue.push = push
