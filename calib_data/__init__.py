"""Calibration: token maps, observed ranges, attention's scores, and theta."""
