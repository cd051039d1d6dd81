"""`nextscale paper table-1`: class-conditional pictures of full precision and of recipes."""

from nextscale.cli._quality_command import quality_command
from nextscale.paper.table_1 import QUICK_ROWS, TABLE

table_1 = quality_command(
    TABLE,
    QUICK_ROWS,
    """Draw pictures with full precision and with recipes, and measure them as sets, as the paper's Table 1.

    The model is the demo model, unless --var and --vae name an official one (VAR-d16 to d30). IS-E and FID-E use the
    network EfficientNet-Lite0 and cannot be compared with the paper's IS and FID, which need --inception-weights and
    statistics of ImageNet (--reference). Bundles are built into --store; after Ctrl-C the same command goes on from
    where it was.

    \b
    nextscale paper table-1 --quick
    nextscale paper table-1 --roundings benchmarks/roundings --markdown table_1.md
    nextscale paper table-1 --var var_d16.pth --vae vae_ch160v4096z32.pth --learn --device cuda \\
        --inception-weights inception.pth --reference VIRTUAL_imagenet256_labeled.npz --standard-metrics
    """,
)
