"""Every figure of an app that says what was lost, skipped or failed is there for whoever watches the fleet."""

from __future__ import annotations

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.cloud.api.serving import Served

FIGURES = {
    "frames": "marram_app_frames",
    "edge": "marram_app_edge_frames",
    "cloud": "marram_app_cloud_frames",
    "dropped": "marram_app_dropped_frames",
    "skipped": "marram_app_skipped_frames",
    "errors": "marram_app_errors",
    "timeouts": "marram_app_cloud_timeouts",
}


def test_counts_of_an_app_are_metrics_with_its_device_and_name(served: Served, http: httpx.Client) -> None:
    told = {key: 100 + number for number, key in enumerate(FIGURES)}
    served.add_device("pi-1")
    served.report("pi-1", app="gate", stats=told)
    families = {f.name: f for f in text_string_to_metric_families(http.get("/metrics").text)}
    for key, name in FIGURES.items():
        (sample,) = [each for each in families[name].samples if each.name.endswith("_total")]
        assert sample.value == told[key], key
        assert sample.labels["device"] == "pi-1" and sample.labels["app"] == "gate"


@pytest.mark.parametrize("wrong", ["many", None, float("nan"), [1]])
def test_what_is_no_figure_breaks_no_page(served: Served, http: httpx.Client, wrong: object) -> None:
    served.add_device("pi-1")
    served.report("pi-1", stats={"errors": wrong, "edge": 7})
    answer = http.get("/metrics")
    assert answer.status_code == 200
    families = {f.name: f for f in text_string_to_metric_families(answer.text)}
    assert families["marram_app_edge_frames"].samples[0].value == 7
