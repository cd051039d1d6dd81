"""Bundles and result files as one HTML page."""

__all__ = [
    "report",
    "result_files",
]
