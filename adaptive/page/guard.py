"""Who may see the page, and who may label an alarm.

A browser shows pages of anybody, so that one of somebody else can have it ask for ours: under a
name of its own that leads to this machine (DNS rebinding), or by sending us what it likes. The
first is told by the Host header, the second by the Origin or by what browsers say of who asks. And
what has not been let through must cost next to nothing: nothing long is taken apart.
"""

import hmac
import socket
from collections.abc import Mapping
from ipaddress import ip_address
from typing import NamedTuple

from adaptive.config import PageSettings

COOKIE = "adaptive-token"
ANY = "0.0.0.0", "::"  # every address of this machine
LONGEST = 4096  # bytes of headers and query


class Refusal(NamedTuple):
    """Why a request gets no answer."""

    status: int
    reason: str


def address(host: str, port: int) -> str:
    """Host and port as they stand in a URL and in a Host header."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def url(settings: PageSettings) -> str:
    """Where the page is to be opened."""
    host = socket.gethostname() if settings.host in ANY else settings.host
    return f"http://{address(host, settings.port)}/"


def refused(
    settings: PageSettings, method: str, headers: Mapping[str, str], token: str
) -> Refusal | None:
    """Say why a request must not be answered; None if it may.

    Args:
        settings: Of the page.
        method: Of the request.
        headers: Of the request, by their names in lower case.
        token: As it stands in the address that was asked for; empty if none does.
    """
    host = headers.get("host", "")
    if not served(settings, host):
        wanted = url(settings)
        return Refusal(421, f"Host: wanted that of {wanted}, got {host or 'none'}. Open that.")
    origin, site = headers.get("origin", ""), headers.get("sec-fetch-site", "")
    if origin and origin != f"http://{host}":
        return Refusal(403, f"Origin: wanted http://{host}, got {origin}: it is of another page.")
    followed = method == "GET" and headers.get("sec-fetch-mode") == "navigate"  # a link, to read
    if site in ("cross-site", "same-site") and not followed:
        return Refusal(403, f"Sec-Fetch-Site: wanted same-origin, got {site}: another page asks.")
    cookie = carried(headers)
    if settings.token and not (known(settings, token) or known(settings, cookie)):
        return Refusal(
            401,
            "token: wanted that of [page] in the configuration, got "
            f"{'another' if token or cookie else 'none'}. Open the page with ?token= and it at the "
            "end of its address.",
        )
    return None


def served(settings: PageSettings, host: str) -> bool:
    """Whether a Host header is an address that the page is served at."""
    if ":" not in host.rpartition("]")[2]:
        host += ":80"
    names = {settings.host}
    if settings.local or settings.host in ANY:
        names |= {"localhost", "127.0.0.1", "::1"}
    if settings.host in ANY:
        names.add(socket.gethostname())
        name, _, port = host.rpartition(":")  # what is no name leads to no other machine
        try:
            ip_address(name.strip("[]"))
        except ValueError:
            pass
        else:
            return port == str(settings.port)
    return host in {address(name, settings.port) for name in names}


def known(settings: PageSettings, token: str) -> bool:
    """Whether a token is the right one."""
    return hmac.compare_digest(token.encode(), settings.token.encode())


def carried(headers: Mapping[str, str]) -> str:
    """The token that a browser was given before; empty if none."""
    for part in headers.get("cookie", "").split(";"):
        name, _, value = part.strip().partition("=")
        if name == COOKIE:
            return value
    return ""
