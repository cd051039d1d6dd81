"""The paper's tables as commands, the paper's figures beside ours."""

__all__ = [
    "recipe_bundles",
    "table_2",
    "table_3",
    "table_c",
    "throughput_bundles",
]
