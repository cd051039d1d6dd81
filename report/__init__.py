"""Bundles and result files as one HTML page."""
