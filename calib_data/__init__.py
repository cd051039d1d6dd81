"""Calibration: token maps, observed ranges, attention's scores, and theta."""

__all__ = [
    "attention_scores",
    "choose_theta",
    "match_probabilities",
    "observe_histograms",
    "observe_moments",
    "observe_ranges",
    "observed_stage",
    "plot_matching",
    "plot_theta",
    "sample",
    "subjects",
    "text_subjects",
    "token_maps",
]
