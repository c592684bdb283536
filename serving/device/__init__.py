"""Programs that torch computes on a GPU: `tristage.serving.device.program` opens them."""

__all__ = ["BUCKETS"]

BUCKETS = (1, 4, 16, 64, 256, 1024)
"""Rows of the calls that are replayed as CUDA graphs: others are filled up to the next of them, larger ones are not."""
