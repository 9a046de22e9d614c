"""The alert rules, by Prometheus' own tool."""

import re

import pytest

from tests.metrics.tools import RULES, promtool
from uproar.metrics import CATALOGUE

RULES_TEXT = (RULES / "rules.yml").read_text("utf-8")
ALERTS = re.findall(r"alert: (\w+)", RULES_TEXT)


def test_the_example_configuration_and_its_rules_are_sound():
    said = promtool("check", "config", str(RULES / "prometheus.yml"))
    assert f"{len(ALERTS)} rules found" in said


def test_each_alert_fires_when_it_should_and_not_before():
    promtool("test", "rules", str(RULES / "rules_test.yml"))


@pytest.mark.parametrize("alert", ALERTS)
def test_no_alert_is_untested(alert):
    expectations = re.findall(
        rf"alertname: {alert}\n +exp_alerts:(.*)", (RULES / "rules_test.yml").read_text("utf-8")
    )
    assert {" []", ""} <= set(expectations), f"{alert} must be seen to hold still and to fire"


def test_rules_know_no_metric_that_is_not_served():
    names = set(re.findall(r"\b(?:uproar|process)_\w+(?=[{\[)])", RULES_TEXT))
    assert len(names) >= len(ALERTS) - 1
    assert {re.sub(r"_bucket$", "", name) for name in names} <= set(CATALOGUE)
