"""The paper's Table 4: shift-and-sum and resampled calibration at 4/6, each without the other."""

from __future__ import annotations

from collections.abc import Mapping

from nextscale.paper._quality_table import PaperRow, QualityTable
from nextscale.paper.recipe_bundles import FULL_PRECISION

METHODS = {
    "brecq-w4a6": "neither (BRECQ)",
    "shift-and-sum-w4a6": "shift-and-sum",
    "resample-w4a6": "resampled calibration",
    "ours-w4a6": "both (Ours)",
}
# By depth of VAR.
PAPER: Mapping[int, Mapping[str, PaperRow]] = {
    16: {
        "brecq-w4a6": PaperRow(145.6, 11.16, 10.57),
        "shift-and-sum-w4a6": PaperRow(155.4, 10.15, 9.55),
        "resample-w4a6": PaperRow(152.8, 10.19, 9.74),
        "ours-w4a6": PaperRow(162.1, 9.20, 8.44),
    },
    20: {
        "brecq-w4a6": PaperRow(189.1, 6.74, 6.62),
        "shift-and-sum-w4a6": PaperRow(194.8, 6.10, 6.03),
        "resample-w4a6": PaperRow(195.3, 5.86, 5.61),
        "ours-w4a6": PaperRow(202.2, 5.36, 5.09),
    },
}
TABLE = QualityTable("4", "parts of the method at 4/6", (FULL_PRECISION, *METHODS), METHODS, PAPER)
