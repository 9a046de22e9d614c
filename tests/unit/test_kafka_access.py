"""How the log comes in at Kafka's brokers: which files are taken, and what is said of others."""

from __future__ import annotations

import re

import pytest
from confluent_kafka import KafkaError

from tests.certificates import Authority
from uproar.config import load
from uproar.log import LogRefused
from uproar.log.access import options, refusal

USER = {"user": "uproar"}


def settings(**more):
    """The section `[log]` with paths or words."""
    return load(environ={}, flags={f"log.{key}": str(value) for key, value in more.items()}).log


@pytest.fixture
def files(tmp_path):
    """An authority with one certificate, and a password."""
    authority = Authority(tmp_path)
    cert, key = authority.issue("127.0.0.1")
    (tmp_path / "password").write_text("secret\nof uproar\n")
    return {
        "ca_file": authority.file, "cert_file": cert, "key_file": key,
        "password_file": tmp_path / "password",
    }  # fmt: skip


def test_the_kind_of_listener_follows_from_what_is_given(files):
    tls, login = {"ca_file": files["ca_file"]}, {**USER, "password_file": files["password_file"]}
    kinds = [
        options(settings(**given))["security.protocol"]
        for given in ({}, tls, login, {**tls, **login})
    ]
    assert kinds == ["plaintext", "ssl", "sasl_plaintext", "sasl_ssl"]


def test_the_password_is_the_first_line_and_names_are_checked(files):
    found = options(settings(**USER, **files))
    assert found["sasl.password"] == "secret" and found["sasl.mechanism"] == "SCRAM-SHA-512"
    assert found["enable.ssl.certificate.verification"] == "true"
    assert found["ssl.endpoint.identification.algorithm"] == "https"
    assert found["ssl.key.location"] == str(files["key_file"])


@pytest.mark.parametrize(
    ("field", "content", "said"),
    [
        ("password_file", None, r"^log.password_file: \S+ can't be read: .*No such"),
        ("password_file", "\nsecret", r"^log.password_file: \S+ is empty; put the password"),
        ("password_file", b"\xff", r"^log.password_file: \S+ can't be read: "),
        ("ca_file", None, r"^log.ca_file: \S+ can't be used: .*No such.*; give the certificate"),
        ("ca_file", "no certificate", r"^log.ca_file: \S+ can't be used: "),
        ("cert_file", None, r"^log.cert_file: .*No such.*; give both in PEM"),
        ("key_file", "no key", r"^log.cert_file: \S+ with log.key_file \S+ can't be used: "),
    ],
)
def test_a_file_that_can_t_be_used_is_named(files, field, content, said):
    if content is None:
        files[field].unlink()
    elif isinstance(content, bytes):
        files[field].write_bytes(content)
    else:
        files[field].write_text(content)
    with pytest.raises(LogRefused, match=said):
        options(settings(**USER, **files))


@pytest.mark.parametrize(
    ("code", "text", "said"),
    [
        (KafkaError._AUTHENTICATION, "x: invalid credentials (after 3ms in AUTH_REQ)",
         r'^log.password_file: the brokers refused log.user "uproar": x: invalid credentials; put'),
        (KafkaError._SSL, "ssl://a:1/bootstrap: handshake failed: certificate verify failed: …",
         r"^log.ca_file: ca.pem does not vouch for ssl://a:1/bootstrap; give the authority"),
        (KafkaError._TRANSPORT, "ssl://a:1/1: Receive failed: … SSL alert number 42",
         r"^log.cert_file: the brokers refused our certificate, or that we have none: .*; give"),
        # A broker that is killed may say all of these.
        (KafkaError._SSL, "SSL handshake failed: Disconnected: SSL connection closed by peer", "$"),
        (KafkaError._AUTHENTICATION, "SASL handshake failed: Disconnected", "$"),
        (KafkaError._TRANSPORT, "Connect to ipv4#127.0.0.1:1 failed: Connection refused", "$"),
    ],
)  # fmt: skip
def test_only_what_waiting_does_not_mend_is_a_refusal(code, text, said):
    given = settings(user="uproar", password_file="p", ca_file="ca.pem")
    assert re.match(said, refusal(code, text, given))
