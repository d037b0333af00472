"""The page's server: in the agent's event loop, and never in its way."""

import asyncio
import contextlib
import logging
import socket
from importlib.resources import files
from typing import Any

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import Headers, QueryParams
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from adaptive.config import PageSettings
from adaptive.health import Health
from adaptive.loop import Loop
from adaptive.page import answers
from adaptive.page.guard import COOKIE, LONGEST, address, known, refused, url
from adaptive.page.view import able
from adaptive.page.watcher import Watcher

LOG = logging.getLogger(__name__)
EVERY = 0.25  # [s] between two messages
PATIENCE = 10.0  # [s] that a browser may take for one
WATCHERS = 8  # at most
FIND = 64  # characters of the text to find streams by
CONNECTIONS = 64
FILES = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/plots.js": ("plots.js", "text/javascript"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
    "/uplot.js": ("uplot/uPlot.iife.min.js", "text/javascript"),
    "/uplot.css": ("uplot/uPlot.min.css", "text/css"),
}
HEADERS = {
    "content-security-policy": "default-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; object-src 'none'",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cache-control": "no-store",
}
ENCODER = msgspec.json.Encoder()


def opened(settings: PageSettings, loop: Loop, health: Health) -> "Page | None":
    """Listen, before the agent runs; None, with a warning, where that cannot be."""
    try:
        return Page(settings, loop, health)
    except OSError as error:
        LOG.warning(
            "no page: %s cannot be listened at (%s). The agent runs without it; set another port "
            "under [page] in the configuration, or port = 0 for none",
            address(settings.host, settings.port),
            error.strerror or error,
        )
        return None


class Page:
    """Serves what an agent shows of itself."""

    def __init__(self, settings: PageSettings, loop: Loop, health: Health):
        """Listen; nobody is answered before `run`.

        Args:
            settings: Where, and to whom.
            loop: Of the agent.
            health: Of the agent.

        Raises:
            OSError: The address cannot be had.
        """
        self.settings, self.loop, self.health = settings, loop, health
        self.url = url(settings)
        self.watching, self._started = 0, 0.0
        static = files("adaptive.page").joinpath("static")
        self._files = {
            path: static.joinpath(name).read_bytes() for path, (name, _) in FILES.items()
        }
        routes = [Route(path, self._file) for path in FILES]
        routes += [
            Route("/events", self._events),
            Route("/state", self._state),
            Route("/health", self._health),
            Route("/feedback", self._feedback, methods=["POST"]),
        ]
        config = uvicorn.Config(
            Guard(Starlette(routes=routes), settings),
            http="h11",
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            log_level="critical",  # what goes wrong here `Guard` says
            access_log=False,
            proxy_headers=False,
            server_header=False,
            limit_concurrency=CONNECTIONS,
            timeout_graceful_shutdown=0,
        )
        config.load()
        self._server = Server(config)
        family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
        self._socket = socket.create_server((settings.host, settings.port), family=family)

    async def run(self) -> None:
        """Serve until cancelled; whatever goes wrong here ends nothing else."""
        self._started = asyncio.get_running_loop().time()
        serving = asyncio.create_task(self._server.serve([self._socket]))
        try:
            await asyncio.shield(serving)
        except Exception:
            LOG.exception("the page has ended; the agent goes on without it")
        finally:
            for connection in list(self._server.server_state.connections):
                if connection.transport:
                    connection.transport.abort()  # who looks on is not waited for
            self._server.should_exit = True
            with contextlib.suppress(Exception):
                await serving
            self._socket.close()

    # --- requests -------------------------------------------------------------------------------

    async def _file(self, request: Request) -> Response:
        path = request.url.path
        response = Response(self._files[path], media_type=FILES[path][1])
        token = request.query_params.get("token", "")
        if token and known(self.settings, token):
            response.set_cookie(COOKIE, token, httponly=True, samesite="strict")
        return response

    async def _events(self, request: Request) -> Response:
        if self.watching >= WATCHERS:
            return crowded()
        watcher = self._watcher(request.query_params)
        return watcher if isinstance(watcher, Response) else Messages(self, watcher)

    async def _state(self, request: Request) -> Response:
        if self.watching >= WATCHERS:
            return crowded()
        watcher = self._watcher(request.query_params)
        if isinstance(watcher, Response):
            return watcher
        self.watching += 1
        try:
            return Response(await said(watcher), media_type="application/json")
        finally:
            self.watching -= 1

    def _watcher(self, query: QueryParams) -> Watcher | Response:
        """Who asks for a stream, and for those with a text in their name."""
        name, find = query.get("stream", ""), query.get("find", "")[:FIND]
        chosen = self.loop.tracks.get(name)
        if name and not chosen:
            some = ", ".join(list(self.loop.tracks)[:5])
            return PlainTextResponse(f"stream: wanted one of {some}, ...; got {name[:60]!r}", 404)
        return Watcher(self.loop, self.health, self._started, find, chosen)

    async def _health(self, request: Request) -> Response:
        found = able(self.loop, self.health, asyncio.get_running_loop().time())
        status = 200 if found["ready"] and found["in_time"] else 503
        return answer(status, found)

    async def _feedback(self, request: Request) -> Response:
        payload = bytearray()
        async for chunk in request.stream():
            payload += chunk
            if len(payload) > answers.LONGEST:
                return answer(413, {"error": f"wanted at most {answers.LONGEST} bytes, got more"})
        return answer(*answers.take(self.loop.tracks, bytes(payload)))


def crowded() -> Response:
    """What one more who wants to look is told."""
    text = f"wanted at most {WATCHERS} who look at once, got one more. Close another."
    return PlainTextResponse(text, 503)


def answer(status: int, content: Any) -> Response:
    """A little JSON."""
    return Response(ENCODER.encode(content), status, media_type="application/json")


async def said(watcher: Watcher) -> bytes:
    """The message to somebody who looks, with a turn for everything else between its parts."""
    clock = asyncio.get_running_loop().time
    watcher.step(clock())
    while not watcher.complete:
        await asyncio.sleep(0)
        watcher.step(clock())
    return ENCODER.encode(watcher.message(clock()))


class Messages(Response):
    """Messages to one browser, as server-sent events, until it goes."""

    def __init__(self, page: Page, watcher: Watcher):
        """Send nothing yet.

        Args:
            page: Which counts it.
            watcher: What is shown.
        """
        super().__init__(media_type="text/event-stream")
        del self.headers["content-length"]
        self.page, self.watcher = page, watcher

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send them."""
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        self.page.watching += 1
        self.watcher.open()
        gone = asyncio.create_task(left(receive))
        try:
            await send(start)
            while not gone.done():
                content = b"data: %b\n\n" % await said(self.watcher)
                # With a slow browser the next message waits until this one is on its way.
                async with asyncio.timeout(PATIENCE):
                    await send({"type": "http.response.body", "body": content, "more_body": True})
                await asyncio.wait((gone,), timeout=EVERY)
        except TimeoutError:
            LOG.info("a browser that takes nothing is not shown the page any more")
        finally:
            gone.cancel()
            self.watcher.close()
            self.page.watching -= 1


async def left(receive: Receive) -> None:
    """Wait until a browser has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


class Guard:
    """Lets through who may see the page; what goes wrong behind it is logged, and ends there."""

    def __init__(self, app: ASGIApp, settings: PageSettings):
        """Guard an application.

        Args:
            app: It.
            settings: Who may see it.
        """
        self.app, self.settings = app, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse to."""

        async def with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                ours = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message = {**message, "headers": [*message.get("headers", ()), *ours]}
            await send(message)

        size = len(scope["query_string"]) + sum(
            len(name) + len(value) for name, value in scope["headers"]
        )
        if size > LONGEST:
            text = f"wanted at most {LONGEST} bytes of headers and query, got {size}"
            return await PlainTextResponse(text, 431)(scope, receive, with_headers)
        token = QueryParams(scope["query_string"]).get("token", "")
        headers = {name.lower(): value for name, value in Headers(scope=scope).items()}
        if refusal := refused(self.settings, scope["method"], headers, token):
            response = PlainTextResponse(refusal.reason, refusal.status)
            return await response(scope, receive, with_headers)
        try:
            await self.app(scope, receive, with_headers)
        except Exception:
            LOG.exception("the page could not answer %s", scope["path"])


class Server(uvicorn.Server):
    """Leaves signals to the agent."""

    @contextlib.contextmanager
    def capture_signals(self):
        """Capture none."""
        yield
