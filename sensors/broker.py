"""Which MQTT broker to talk to, and how; the table [broker] of the configuration."""

import math
import os
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

REFUSED = 0x80  # reason codes from here on are failures, in both versions of MQTT
BUSY = (0x88, 0x89, 0x93, 0x96, 0x97)  # of these, the ones that pass: busy, quota exceeded, ...


class Refused(Exception):
    """The broker answered, and its answer is no; only another configuration helps."""


@dataclass(frozen=True)
class Broker:
    """An MQTT broker and what to tell it about us.

    Attributes:
        host: Its name or address.
        port: Usually 1883, with TLS 8883.
        driver: What speaks MQTT: "aiomqtt", or "mqtt5", which takes far less time, knows version
            "5" only and is in the extra `fast`.
        version: Of MQTT. Only "5" tells why a publication was refused, and bounds what the broker
            sends unacknowledged, to half of `max_waiting`.
        client_id: Must be unique at the broker; empty lets one be made up.
        username: Empty for none.
        password_env: The environment variable that holds the password; empty for none.
        password_file: The file whose first line is the password; empty for none.
        tls: Encrypt, and check the broker's certificate.
        ca_file: The authority that signed it, PEM; empty for those that the system trusts.
        cert_file: Our own certificate, PEM; empty for none.
        key_file: The key of `cert_file`.
        keepalive_s: After one and a half times this without a word the other side is gone.
        timeout_s: How long to wait for the broker's answer to anything.
        clean_session: Forget us when the line is cut. False keeps what is not acknowledged, and
            what arrives meanwhile; it needs a `client_id`, and another one when topics change, for
            the broker keeps the old subscriptions too.
        session_expiry_s: How long a session is kept; "5" only, "3.1.1" leaves it to the broker.
        max_inflight: Publications under way at once.
        max_waiting: Received messages that wait for one reader; beyond it they are dropped,
            unacknowledged, and counted.
    """

    host: str = "127.0.0.1"
    port: int = 1883
    driver: Literal["aiomqtt", "mqtt5"] = "aiomqtt"
    version: Literal["3.1.1", "5"] = "5"
    client_id: str = ""
    username: str = ""
    password_env: str = ""
    password_file: str = ""
    tls: bool = False
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    keepalive_s: int = 30
    timeout_s: float = 10.0
    clean_session: bool = True
    session_expiry_s: int = 3600
    max_inflight: int = 100
    max_waiting: int = 10_000

    def __post_init__(self) -> None:
        """Check the table.

        Raises:
            ValueError: A field is out of range, or does not go with another.
        """
        for name, low, high in (
            ("port", 1, 65535),
            ("keepalive_s", 1, 65535),
            ("max_inflight", 1, 65535),
            ("max_waiting", 1, math.inf),
            ("session_expiry_s", 0, 0xFFFFFFFF),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"broker.{name} must be from {low} to {high}, got {value}.")
        for wrong, remedy in (
            (not self.host, "host must not be empty: name the machine that the broker runs on"),
            (
                self.version not in ("3.1.1", "5"),
                f'version must be "3.1.1" or "5", got {self.version!r}',
            ),
            (
                self.driver not in ("aiomqtt", "mqtt5"),
                f'driver must be "aiomqtt" or "mqtt5", got {self.driver!r}',
            ),
            (
                self.driver == "mqtt5" and self.version != "5",
                f'driver "mqtt5" speaks version "5" only, got {self.version!r}: use "aiomqtt"',
            ),
            (
                not 0 < self.timeout_s < math.inf,
                f"timeout_s must be above 0 and finite, got {self.timeout_s}",
            ),
            (
                not self.clean_session and not self.client_id,
                "clean_session = false needs a client_id: by it the broker finds the session again",
            ),
            (
                bool(self.password_env and self.password_file),
                "password_env and password_file were both given: keep one of them",
            ),
            (
                bool(self.password_env or self.password_file) and not self.username,
                "a password needs a username: MQTT sends none without",
            ),
            (
                bool(self.ca_file or self.cert_file or self.key_file) and not self.tls,
                "ca_file, cert_file and key_file are for TLS: set tls = true",
            ),
            (
                bool(self.key_file) and not self.cert_file,
                "key_file needs the cert_file that it belongs to",
            ),
        ):
            if wrong:
                raise ValueError(f"broker.{remedy}.")

    @property
    def receive_maximum(self) -> int:
        """How much the broker may send unacknowledged; only version "5" can tell it.

        Half of what we hold: mosquitto 2.0.11 answers an acknowledgement with as many again. And no
        less, for it sends what it has just got ahead of what it then keeps in a queue.
        """
        return min(max(self.max_waiting // 2, 1), 65535)

    def password(self) -> str | None:
        """Fetch the password.

        Returns:
            It, or None if there is none.

        Raises:
            ValueError: The environment variable is not set, or the file cannot be read.
        """
        if self.password_env:
            password = os.environ.get(self.password_env)
            if password is None:
                raise ValueError(
                    f"broker.password_env names the environment variable {self.password_env}, "
                    "which is not set. Set it before the start, or use password_file."
                )
            return password
        if self.password_file:
            try:
                lines = Path(self.password_file).read_text("utf-8").splitlines()
            except (OSError, UnicodeError) as error:
                raise ValueError(
                    f"broker.password_file cannot be read: {error}. Its first line is the password."
                ) from error
            return lines[0] if lines else ""
        return None

    def tls_context(self) -> ssl.SSLContext | None:
        """Load the certificates; reads files, so call it in a thread.

        Returns:
            The context, or None without TLS.

        Raises:
            ValueError: A file is missing, or is no certificate or key.
        """
        if not self.tls:
            return None
        try:
            context = ssl.create_default_context(cafile=self.ca_file or None)
            if self.cert_file:
                context.load_cert_chain(self.cert_file, self.key_file or None)
        except OSError as error:  # includes ssl.SSLError
            raise ValueError(
                f"broker: ca_file {self.ca_file!r}, cert_file {self.cert_file!r} and key_file "
                f"{self.key_file!r} must be PEM files that exist and belong together: {error}."
            ) from error
        return context


def words(code: int) -> str:
    """Say what a broker means by a reason code."""
    names = {0x80: "unspecified error", 0x87: "not authorized", 0x8F: "topic filter invalid"}
    return f"{names[code]} (0x{code:02x})" if code in names else f"code 0x{code:02x}"
