"""Token maps for calibration: sampling and observed ranges."""
