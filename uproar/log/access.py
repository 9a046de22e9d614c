"""How we come in at Kafka's brokers: TLS to those that an authority vouches for, and a password.

librdkafka tries again for ever, whatever a broker says, and calls that *timed out*. So a start that
fails knocks once more and listens: what waiting does not mend ends it, with the setting at fault.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient

from uproar.config import Log as Settings
from uproar.log import LogRefused

# The password itself is never sent, and a KRaft cluster keeps such users by itself.
MECHANISM: Final = "SCRAM-SHA-512"
# Several tries: a wrong password is refused after 0.3 s, a certificate after 0.02 s.
KNOCK_S: Final = 1.0


def options(settings: Settings) -> dict[str, str]:
    """Return librdkafka's settings; raises LogRefused for a file that can't be used."""
    tls, login = bool(settings.ca_file), bool(settings.user)
    found = {"security.protocol": f"{'sasl_' if login else ''}{'ssl' if tls else 'plaintext'}"}
    if login:
        found |= {
            "sasl.mechanism": MECHANISM,
            "sasl.username": settings.user,
            "sasl.password": _password(settings.password_file),
        }
    if tls:
        found |= {
            "ssl.ca.location": _authority(settings.ca_file),
            "enable.ssl.certificate.verification": "true",
            "ssl.endpoint.identification.algorithm": "https",
        }
    if settings.cert_file:
        cert, key = _own(settings.cert_file, settings.key_file)
        found |= {"ssl.certificate.location": cert, "ssl.key.location": key}
    return found


def knock(common: Mapping[str, Any], settings: Settings) -> None:
    """Raise LogRefused where a broker turns us away for a reason that waiting does not mend.

    With a client of its own: errors that nobody fetches pile up in one that stays.
    """
    heard: list[KafkaError] = []
    ours: dict[str, Any] = {**common, "error_cb": heard.append}
    door = AdminClient(ours)
    until = time.monotonic() + KNOCK_S
    while time.monotonic() < until:
        try:
            door.list_topics(timeout=0.1)
            return
        except KafkaException:
            door.poll(0.05)
        for error in heard:
            refused = refusal(error.code(), error.str(), settings)
            if refused:
                raise LogRefused(refused)
        heard.clear()


def refusal(code: int, text: str, settings: Settings) -> str:
    """Return what is wrong with our settings by an error of librdkafka's; empty: maybe nothing."""
    text = text.partition(" (after ")[0]
    if "Disconnected" in text:  # a broker that dies on the way says this too
        return ""
    if code == KafkaError._AUTHENTICATION:
        return (
            f'log.password_file: the brokers refused log.user "{settings.user}": {text}; put the '
            f"user's password on the file's first line, and give the brokers that user for "
            f"{MECHANISM}"
        )
    if "verify failed" in text:
        return (
            f"log.ca_file: {settings.ca_file} does not vouch for {text.partition(': ')[0]}; give "
            "the authority that signed the brokers' certificates, and the brokers in log.brokers "
            "by the names that stand in them"
        )
    if "SSL alert" in text:
        return (
            f"log.cert_file: the brokers refused our certificate, or that we have none: {text}; "
            "give one that their authority signed, and its log.key_file"
        )
    return ""


def _password(file: str) -> str:
    path = Path(file).expanduser()
    try:
        password = path.read_text("utf-8").partition("\n")[0].strip()
    except (OSError, UnicodeDecodeError) as error:
        raise LogRefused(f"log.password_file: {path} can't be read: {error}") from error
    if not password:
        raise LogRefused(f"log.password_file: {path} is empty; put the password on its first line")
    return password


def _authority(file: str) -> str:
    path = Path(file).expanduser()
    try:
        ssl.create_default_context(cafile=str(path))
    except (OSError, ValueError) as error:
        raise LogRefused(
            f"log.ca_file: {path} can't be used: {error}; give the certificate, in PEM, of the "
            "authority that signed the brokers'"
        ) from error
    return str(path)


def _own(cert_file: str, key_file: str) -> tuple[str, str]:
    cert, key = Path(cert_file).expanduser(), Path(key_file).expanduser()
    try:
        # An empty passphrase: OpenSSL would ask the terminal for that of an encrypted key.
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(cert, key, password="")
    except (OSError, ValueError) as error:
        raise LogRefused(
            f"log.cert_file: {cert} with log.key_file {key} can't be used: {error}; give both in "
            "PEM, the key without a passphrase"
        ) from error
    return str(cert), str(key)
