"""What the admin port says of a cluster's masters, also of one that has gone."""

from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.system import wait_until
from uproar.valkey_info import Servers, parse


def values(servers: Servers) -> dict[str, dict[str, float]]:
    """Values by metric and server."""
    return {
        sample.name: {one.labels.get("server", ""): one.value for one in family.samples}
        for family in text_string_to_metric_families(servers.text())
        for sample in family.samples
    }


@pytest.mark.stack
def test_every_master_has_its_figures_and_a_lost_one_is_down(mortal_cluster):
    config = mortal_cluster.settings(log__engine="kafka", log__brokers="127.0.0.1:9092")
    servers = Servers(config)
    found = values(servers)
    masters = {f"127.0.0.1:{node.port}" for node in mortal_cluster.masters()}
    assert found["uproar_valkey_up"] == dict.fromkeys(masters, 1.0)
    for name in ("cpu_seconds_total", "memory_bytes", "clients", "commands_total"):
        assert found[f"uproar_valkey_{name}"].keys() == masters
        assert min(found[f"uproar_valkey_{name}"].values()) > 0

    lost = mortal_cluster.masters()[0]
    lost.kill()
    down = f"127.0.0.1:{lost.port}"
    wait_until(lambda: values(servers)["uproar_valkey_up"].get(down) == 0.0, 5, "it shows")
    assert down not in values(servers)["uproar_valkey_memory_bytes"]
    wait_until(
        lambda: list(values(servers)["uproar_valkey_up"].values()) == [1.0] * 3, 20, "a successor"
    )


def test_of_an_info_the_numbers_are_taken():
    said = b"# Memory\r\nused_memory:1024\r\nused_memory_human:1.00K\r\nused_cpu_sys:0.5\r\n\r\nx"
    assert parse(said) == {"used_memory": 1024.0, "used_cpu_sys": 0.5}
