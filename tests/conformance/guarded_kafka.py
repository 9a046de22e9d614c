"""A broker that asks who comes: TLS with a certificate made on the spot, and a password."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from confluent_kafka.admin import (
    AdminClient,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialUpsertion,
)

from deploy.stack.kafka import Kafka
from deploy.stack.server import HOST, free_ports
from tests.certificates import Authority

GUARDED = ("SASL_SSL", "SASL_PLAINTEXT", "SSL")
SCRAM = "org.apache.kafka.common.security.scram.ScramLoginModule required;"


class Guarded(Kafka):
    """One node with a listener for each way to come in; the plain one is the operator's."""

    def __init__(self, cache: Path, directory: Path, authority: Authority) -> None:
        plain, control, *guarded = free_ports(2 + len(GUARDED))
        super().__init__(cache, directory, [(plain, control)])
        ports = {"PLAINTEXT": plain, **dict(zip(GUARDED, guarded, strict=True))}
        self.at = {name: f"{HOST}:{port}" for name, port in ports.items()}
        self._control = control
        self.ca = authority.file
        self.cert, self.key = authority.issue(HOST)

    def prepare(self) -> None:
        both = self.directory / "keystore.pem"  # Kafka wants key and certificate in one file
        both.write_bytes(self.key.read_bytes() + self.cert.read_bytes())
        super().prepare()

    def let_in(self, user: str, password: str) -> None:
        """Make a user, as `kafka-configs --entity-type users` does."""
        operator = AdminClient({"bootstrap.servers": self.at["PLAINTEXT"], "log_level": 0})
        info = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, 4096)
        made = UserScramCredentialUpsertion(user, info, password.encode())
        operator.alter_user_scram_credentials([made])[user].result(10)

    def _settings(self) -> Sequence[tuple[str, object]]:
        listeners = [f"{name}://{at}" for name, at in self.at.items()]
        kinds = [f"{name}:{name}" for name in self.at]
        return [  # the last of a name counts
            *super()._settings(),
            ("listeners", ",".join([*listeners, f"CONTROLLER://{HOST}:{self._control}"])),
            ("advertised.listeners", ",".join(listeners)),
            ("listener.security.protocol.map", ",".join(["CONTROLLER:PLAINTEXT", *kinds])),
            ("ssl.keystore.type", "PEM"),
            ("ssl.keystore.location", self.directory / "keystore.pem"),
            ("ssl.truststore.type", "PEM"),
            ("ssl.truststore.location", self.ca),
            ("listener.name.ssl.ssl.client.auth", "required"),
            ("sasl.enabled.mechanisms", "SCRAM-SHA-512"),
            ("listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config", SCRAM),
            ("listener.name.sasl_plaintext.scram-sha-512.sasl.jaas.config", SCRAM),
        ]
