"""Calibration: token maps, observed ranges, attention's scores, and theta."""

__all__ = [
    "attention_scores",
    "bit_maps",
    "choose_theta",
    "match_bits",
    "match_probabilities",
    "observe_histograms",
    "observe_moments",
    "observe_ranges",
    "observed_stage",
    "plot_matching",
    "plot_theta",
    "sample",
    "sample_bits",
    "subjects",
    "text_subjects",
    "token_maps",
]
