"""`nextscale paper table-4`: shift-and-sum and resampled calibration, each without the other."""

from nextscale.cli._quality_command import quality_command
from nextscale.paper.table_4 import TABLE

table_4 = quality_command(
    TABLE,
    (),
    """Draw pictures with parts of the method at 4/6, and measure them as sets, as the paper's Table 4.

    All as in table-1 (`nextscale paper table-1 --help`); the official models are VAR-d16 and VAR-d20.

    \b
    nextscale paper table-4 --roundings benchmarks/roundings --seed 0 --seed 1 --seed 2
    """,
)
