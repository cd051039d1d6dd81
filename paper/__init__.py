"""The paper's tables as commands, the paper's figures beside ours."""

__all__ = [
    "editing_bundles",
    "table_3",
    "table_c",
    "throughput_bundles",
]
