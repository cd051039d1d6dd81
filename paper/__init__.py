"""The paper's tables as commands, the paper's figures beside ours."""

__all__ = [
    "table_c",
    "throughput_bundles",
]
