"""What stands before Gradio's server: which requests pass, and how large they may be.

Gradio serves far more than this page needs, such as `/gradio_api/file=http://...`, which fetches
any address for whoever asks. So only the routes that the page uses are let through, files only from
the page's own folder, and no request may name a file outside it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

API = "/gradio_api"
_FILE = f"{API}/file="
_GET = re.compile(
    r"/|/(assets|static|svelte)/[^\\]*|/(theme\.css|favicon\.ico|robots\.txt|manifest\.json|config)"
    rf"/?|{API}/(info|theme\.css|startup-events|app_id|upload_progress|queue/data"
    r"|login_check|heartbeat/[\w-]+|call/[\w-]+/[\w-]+)/?"
)
_POST = re.compile(rf"{API}/(upload|queue/join|cancel|reset|call/[\w-]+)/?")
_UPLOAD = f"{API}/upload"
_JSON_LIMIT = 1 << 20
_ENVELOPE = 1 << 16  # what a form adds to the file in it

_HEADERS = (
    (
        b"content-security-policy",
        b"default-src 'self'; img-src 'self' data: blob:; media-src 'self' data: blob:; "
        b"style-src 'self' 'unsafe-inline'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
        b"font-src 'self' data:; connect-src 'self'; worker-src 'self' blob:; object-src 'none'; "
        b"base-uri 'self'; form-action 'self'",
    ),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
)


class Guard:
    """An ASGI application around another.

    Args:
        folder: the only one whose files are served or may be named.
        max_bytes: of an uploaded file.
    """

    def __init__(self, app: App, folder: Path, max_bytes: int) -> None:
        self.app, self.folder, self.max_bytes = app, os.path.realpath(folder), max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # nothing here speaks websockets
            await send({"type": "websocket.close", "code": 1008})
            return
        refused = self._refused(scope["method"], scope["path"])
        if refused is not None:
            await _answer(send, *refused)
            return
        upload = scope["path"].rstrip("/") == _UPLOAD
        limit = self.max_bytes + _ENVELOPE if upload else _JSON_LIMIT
        body = _Body(receive, limit)
        claimed = dict(scope["headers"]).get(b"content-length", b"0")
        if not claimed.isdigit() or int(claimed) > limit:
            await _answer(send, 413, f"That is more than the {limit:,} bytes that are taken.")
            return
        if scope["method"] == "POST" and not upload:
            content = await body.whole()
            if body.too_large:
                await _answer(send, 413, f"That is more than the {limit:,} bytes that are taken.")
                return
            if not self._names_only_its_own(content):
                await _answer(send, 400, "A request may name only files that it uploaded.")
                return
        await self.app(scope, body.receive, _with_headers(send))

    def _refused(self, method: str, path: str) -> tuple[int, str] | None:
        """Status and reason, or None for what may pass."""
        if method in ("GET", "HEAD"):
            if path.startswith(_FILE):
                return None if self._is_own(path[len(_FILE) :]) else (403, "Not served.")
            known = ".." not in path and _GET.fullmatch(path) is not None
        else:
            known = method == "POST" and _POST.fullmatch(path) is not None
        return None if known else (404, "Not found.")

    def _is_own(self, path: str) -> bool:
        """Whether it lies in the folder, links followed, however it is written."""
        for one in (path, unquote(path)):
            try:
                real = os.path.realpath(one)
            except ValueError:  # a zero byte
                return False
            if not os.path.isabs(one) or not real.startswith(self.folder + os.sep):
                return False
        return True

    def _names_only_its_own(self, content: bytes) -> bool:
        try:
            paths = list(_paths(json.loads(content))) if content.strip() else []
        except (ValueError, RecursionError):
            return False
        return all(isinstance(path, str) and self._is_own(path) for path in paths)


class _Body:
    """A request's body, counted while it is read."""

    def __init__(self, receive: Receive, limit: int) -> None:
        self._receive, self._limit, self._count = receive, limit, 0
        self._kept: list[Message] = []
        self.too_large = False

    async def receive(self) -> Message:
        if self._kept:
            return self._kept.pop(0)
        message = await self._receive()
        if message["type"] == "http.request":
            self._count += len(message.get("body", b""))
            if self._count > self._limit:
                self.too_large = True
                return {"type": "http.disconnect"}
        return message

    async def whole(self) -> bytes:
        """All of it; it is still there to be received."""
        kept = []
        while True:
            message = await self.receive()
            kept.append(message)
            if message["type"] != "http.request" or not message.get("more_body"):
                break
        self._kept = kept
        return b"".join(message.get("body", b"") for message in kept)


def _paths(value: Any) -> Iterator[Any]:
    """Everything called `path` anywhere in JSON, which is how Gradio names a file."""
    if isinstance(value, dict):
        if value.get("path") is not None:
            yield value["path"]
        for one in value.values():
            yield from _paths(one)
    elif isinstance(value, list):
        for one in value:
            yield from _paths(one)


def _with_headers(send: Send) -> Send:
    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", []), *_HEADERS]
        await send(message)

    return sent


async def _answer(send: Send, status: int, text: str) -> None:
    body = json.dumps({"detail": text}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": [*headers, *_HEADERS]})
    await send({"type": "http.response.body", "body": body})
