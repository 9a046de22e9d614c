"""TLS and the password on a real broker, with certificates made on the spot; what is refused."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import pytest

from deploy.stack.__main__ import cache_dir
from tests.certificates import Authority
from tests.conformance import kafka
from tests.conformance.guarded_kafka import Guarded
from tests.system import wait_until
from uproar import log as logs
from uproar.log import LogRefused, LogUnavailable

pytestmark = [pytest.mark.stack, pytest.mark.long]
T = (int(time.time()) - 3600) * 1000
REFUSED_S = 2 * kafka.TIMEOUT_S + 4.0  # two rounds, where the machine was too busy for the first


@pytest.fixture(scope="module")
def broker(tmp_path_factory):
    """A broker with a listener for each way to come in, and the user `uproar`."""
    kafka.wanted()
    authority = Authority(tmp_path_factory.mktemp("ca"))
    with tempfile.TemporaryDirectory(prefix="up") as directory:
        broker = Guarded(cache_dir(), Path(directory) / "kafka", authority)
        try:
            broker.start()
            broker.let_in("uproar", "secret")
            yield broker
        finally:
            broker.kill9()


@pytest.fixture
def topic(broker):
    """A topic, made by an operator."""
    topic = kafka.Topic(broker.at["PLAINTEXT"])
    yield topic
    topic.remove()


@pytest.fixture
def login(tmp_path):
    """The right user and password."""
    file = tmp_path / "password"
    file.write_text("secret\n")
    return {"log__user": "uproar", "log__password_file": str(file)}


@pytest.fixture
def tls(broker):
    """The right authority."""
    return {"log__ca_file": str(broker.ca)}


@pytest.mark.parametrize("listener", ["SASL_SSL", "SASL_PLAINTEXT", "SSL"])
def test_records_are_written_read_and_shared_out(broker, topic, login, tls, listener):
    given = (login if "SASL" in listener else {}) | (tls if "SSL" in listener else {})
    if listener == "SSL":  # it asks for a certificate of ours
        given |= {"log__cert_file": str(broker.cert), "log__key_file": str(broker.key)}
    # A name of its own: this one makes it, as the first worker does.
    name = f"{topic.name}-{listener.lower()}"
    config = topic.settings(log__brokers=broker.at[listener], log__topic=name, **given)
    log = topic.keep(logs.open_log(config))
    log.prepare(appending=True)
    assert log.append(1, [b"a", b"b" * 100_000], T) == 1
    assert [batch.records for batch in log.read(1, 0, 2.0, 10)] == [[b"a", b"b" * 100_000]]
    assert log.end(1) == (2, T)
    member = log.join("g", "a")
    wait_until(lambda: member.partitions() == {0, 1, 2}, 20, "the group has given us everything")
    log.commit("g", 1, 2)
    other = topic.keep(logs.open_log(config))
    wait_until(lambda: other.position("g", 1) == 2, 10, "the position is stored")


def refused(topic, said, **settings):
    """The sentence with which a start ends, and that it does so in time."""
    log = topic.keep(logs.open_log(topic.settings(**settings)))
    began = time.monotonic()
    while time.monotonic() < began + REFUSED_S:
        try:
            log.prepare()
        except LogUnavailable:  # a worker tries again as well
            continue
        except LogRefused as error:
            assert said in str(error)
            return
        raise AssertionError("it was let in")
    raise AssertionError(f"no refusal within {REFUSED_S:g} s")


@pytest.mark.parametrize("listener", ["SASL_SSL", "SASL_PLAINTEXT"])
def test_a_wrong_password_ends_the_start(broker, topic, login, tls, listener):
    Path(login["log__password_file"]).write_text("guess\n")
    said = 'log.password_file: the brokers refused log.user "uproar": '
    given = login | (tls if listener == "SASL_SSL" else {})
    refused(topic, said, log__brokers=broker.at[listener], **given)


def test_a_foreign_authority_ends_the_start(broker, topic, login, tmp_path, monkeypatch):
    # That this machine trusts the broker's authority does not make it the one that was named.
    monkeypatch.setenv("SSL_CERT_FILE", str(broker.ca))
    file = Authority(tmp_path).file
    said = f"log.ca_file: {file} does not vouch for sasl_ssl://{broker.at['SASL_SSL']}"
    refused(topic, said, log__brokers=broker.at["SASL_SSL"], log__ca_file=str(file), **login)


def test_a_certificate_for_another_name_ends_the_start(broker, topic, login, tls):
    by_name = broker.at["SASL_SSL"].replace("127.0.0.1", "localhost")
    said = f"does not vouch for sasl_ssl://{by_name}"
    refused(topic, said, log__brokers=by_name, **login, **tls)


def test_a_missing_certificate_of_ours_ends_the_start(broker, topic, tls):
    refused(topic, "log.cert_file: the brokers refused", log__brokers=broker.at["SSL"], **tls)


def test_another_kind_of_listener_is_asked_after(broker, topic, tls):
    """Which may be a broker that is just coming up: the start waits, and says what it looks for."""
    for at, given, kind in (("SSL", {}, "PLAINTEXT"), ("PLAINTEXT", tls, "SSL")):
        log = topic.keep(logs.open_log(topic.settings(log__brokers=broker.at[at], **given)))
        said = f"do log.brokers name {kind} listeners, as log.ca_file and log.user ask for"
        with pytest.raises(LogUnavailable, match=said):
            log.prepare()
