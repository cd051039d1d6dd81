"""The paper's Table 1: class-conditional pictures of full precision and of recipes, by IS, FID and FID2FP16."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nextscale.paper._quality_table import PaperRow, QualityTable
from nextscale.paper.recipe_bundles import FULL_PRECISION


def _rows(**by_bits: Sequence[tuple[float, float, float]]) -> dict[str, PaperRow]:
    methods = ("brecq", "litevar", "ours", "ours-litevar")
    return {
        f"{method}-{bits}": PaperRow(*figures)
        for bits, rows in by_bits.items()
        for method, figures in zip(methods, rows, strict=True)
    }


# By depth of VAR; BRECQ, LiteVAR, Ours, Ours+LiteVAR.
PAPER: Mapping[int, Mapping[str, PaperRow]] = {
    16: {FULL_PRECISION: PaperRow(274.8, 3.41)} | _rows(
        w6a6=((202.9, 5.56, 4.29), (212.1, 5.17, 4.05), (213.5, 4.46, 3.14), (226.1, 4.08, 2.64)),
        w4a8=((203.8, 6.07, 4.76), (217.8, 5.56, 3.85), (212.5, 5.71, 4.05), (227.8, 4.83, 3.00)),
        w4a6=((145.6, 11.16, 10.57), (158.1, 9.93, 9.09), (162.1, 9.20, 8.44), (189.3, 6.62, 5.28)),
        w4a4=((67.6, 33.03, 32.82), (66.9, 35.87, 36.67), (90.7, 24.57, 24.35), (110.9, 18.92, 18.32)),
    ),
    20: {FULL_PRECISION: PaperRow(302.9, 2.73)} | _rows(
        w6a6=((239.5, 3.23, 2.72), (247.8, 3.13, 2.50), (249.5, 3.01, 2.34), (253.3, 2.89, 2.09)),
        w4a8=((226.2, 4.21, 3.82), (242.6, 3.58, 2.93), (241.0, 3.71, 2.98), (256.4, 3.32, 2.32)),
        w4a6=((189.1, 6.74, 6.62), (205.6, 5.23, 5.06), (202.2, 5.36, 5.09), (219.2, 4.46, 3.98)),
        w4a4=((94.1, 23.03, 22.42), (100.7, 21.71, 21.10), (116.8, 17.74, 17.28), (145.4, 12.43, 12.03)),
    ),
    24: {FULL_PRECISION: PaperRow(313.2, 2.17)} | _rows(
        w6a6=((261.4, 2.73, 2.44), (261.8, 2.76, 2.43), (264.8, 2.59, 2.30), (269.9, 2.38, 1.97)),
        w4a8=((261.7, 2.90, 2.23), (270.4, 2.72, 2.19), (275.8, 2.60, 1.91), (285.6, 2.50, 1.73)),
        w4a6=((215.8, 4.89, 4.82), (225.4, 4.23, 4.04), (230.7, 3.96, 3.90), (248.1, 3.32, 3.01)),
        w4a4=((119.0, 16.89, 17.07), (128.6, 15.75, 16.81), (148.0, 12.04, 11.71), (172.7, 8.85, 8.24)),
    ),
    30: {FULL_PRECISION: PaperRow(303.5, 1.97)} | _rows(
        w6a6=((250.9, 3.38, 2.55), (258.5, 3.27, 2.48), (262.7, 2.88, 2.09), (266.8, 2.66, 1.85)),
        w4a8=((270.4, 2.91, 1.96), (273.4, 2.85, 2.03), (276.8, 2.71, 1.81), (279.4, 2.60, 1.76)),
        w4a6=((221.4, 5.09, 4.17), (218.9, 5.41, 4.60), (227.8, 4.59, 3.74), (235.3, 4.43, 3.56)),
        w4a4=((125.3, 15.71, 14.66), (149.3, 12.25, 11.11), (177.5, 9.26, 8.68), (180.6, 9.12, 8.48)),
    ),
}  # fmt: skip
# The paper's, and what this project recommends at the same bits.
ROWS = (
    FULL_PRECISION,
    "default",
    *(f"{method}-{bits}" for bits in ("w6a6", "w4a8", "w4a6", "w4a4")
      for method in ("brecq", "litevar", "ours", "ours-litevar", "default")),
)  # fmt: skip
QUICK_ROWS = (FULL_PRECISION, "default", "rtn-w8a8", "nearest-w4a8")
TABLE = QualityTable("1", "class-conditional pictures", ROWS, {}, PAPER)
