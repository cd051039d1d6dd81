"""The paper's tables as commands, the paper's figures beside ours."""

__all__ = [
    "paper_recipes",
    "paper_table",
    "recipe_bundles",
    "segmentation",
    "segmenter",
    "table_2",
    "table_3",
    "table_c",
    "table_d",
    "throughput_bundles",
]
