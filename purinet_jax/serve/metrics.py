"""The metrics of the server, for Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector


class Metrics:
    """Counts of requests, batches and memory, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.requests = Counter("purinet_requests", "Requests for images.", ["kind", "status"], registry=registry)
        self.seconds = Histogram(
            "purinet_request_seconds",
            "Time from a request's head to its response, of successful requests.",
            ["kind"],
            buckets=(0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
            registry=registry,
        )
        self.in_progress = Gauge("purinet_images_in_progress", "Images that are being made.", registry=registry)
        self.upload_bytes = Gauge("purinet_upload_bytes", "Uploads held in memory.", registry=registry)
        self.batch_size = Histogram(
            "purinet_batch_images", "Images in a batch.", buckets=(1, 2, 4, 8, 16, 32, 64), registry=registry
        )
