"""What the gateway counts, for Prometheus and for its page."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from tristage.gateway.drift import Drift

__all__ = ["PREDICT", "STEPS", "Metrics"]

_SECONDS = (
    *(0.0005, 0.00075, 0.001, 0.0015, 0.002, 0.003, 0.004, 0.006, 0.008, 0.012, 0.016, 0.024, 0.032, 0.05, 0.075),
    *(0.1, 0.15, 0.25, 0.4, 0.7, 1.0, 2.0, 5.0, 10.0, 30.0),
)
PREDICT, STEPS = "/v1/predict", "/v1/steps"


class _Collected(Collector):
    """The drift of every column, worked out when Prometheus asks."""

    def __init__(self, drift: Drift) -> None:
        self._drift = drift

    def collect(self) -> Iterator[Any]:
        now = self._drift.now()
        family = GaugeMetricFamily(
            "tristage_gateway_drift_psi",
            "Population stability index of the rows of late against the golden rows; above 0.25 is another population.",
            labels=["side", "column"],
        )
        for each in now["columns"]:
            family.add_metric([each["side"], each["column"]], each["psi"])
        yield family
        yield CounterMetricFamily("tristage_gateway_drift_rows", "Rows counted for drift.", value=now["rows"])


class Metrics:
    """The counters of one gateway, in a registry of their own."""

    def __init__(self, drift: Drift) -> None:
        self.registry = CollectorRegistry()
        make: dict[str, Any] = {"registry": self.registry}
        self._requests = Counter("tristage_gateway_requests", "Requests answered.", ["route", "status"], **make)
        self._refused = Counter("tristage_gateway_refused", "Requests refused, by the reason's code.", ["code"], **make)
        self._seconds = Histogram(
            "tristage_gateway_request_seconds",
            "Seconds from a request's headers to the end of its answer, of those answered with 200.",
            ["route"],
            buckets=_SECONDS,
            **make,
        )
        self.rows = Counter("tristage_gateway_rows", "Rows predicted.", **make)
        self.in_flight = Gauge("tristage_gateway_in_flight", "Requests being answered.", **make)
        self.up = Gauge("tristage_gateway_triton_up", "1 while Triton answers, else 0.", **make)
        self.registry.register(_Collected(drift))
        self._known: dict[tuple[str, int], tuple[Counter, Histogram | None]] = {}
        self._seconds.labels(PREDICT)  # so that the page has buckets before the first request

    def count(self, route: str, status: int, seconds: float) -> None:
        """Count one request that was answered."""
        known = self._known.get((route, status))
        if known is None:
            answered = self._seconds.labels(route) if status == 200 else None
            known = self._known[route, status] = self._requests.labels(route, str(status)), answered
        requests, answered = known
        requests.inc()
        if answered is not None:
            answered.observe(seconds)

    def refuse(self, code: str) -> None:
        """Count one refusal."""
        self._refused.labels(code).inc()

    def totals(self) -> dict[str, Any]:
        """Running totals of /v1/predict: requests by status, rows, and those answered within each of some seconds."""
        requests: dict[str, float] = {}
        buckets: list[tuple[float, float]] = []
        for metric in (*self._requests.collect(), *self._seconds.collect()):
            for sample in metric.samples:
                if sample.labels.get("route") != PREDICT:
                    continue
                if sample.name.endswith("_requests_total"):
                    requests[sample.labels["status"]] = sample.value
                elif sample.name.endswith("_bucket") and sample.labels["le"] != "+Inf":
                    buckets.append((float(sample.labels["le"]), sample.value))
        rows = next(sample.value for metric in self.rows.collect() for sample in metric.samples)
        return {"requests": requests, "rows": rows, "seconds": buckets}
