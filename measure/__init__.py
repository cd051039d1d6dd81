"""Speed and memory: contenders in turns, confidence intervals, rooflines, peers."""

__all__ = [
    "bench",
    "bundle_contender",
    "contender",
    "contest",
    "interleaved",
    "kernel_rates",
    "machine_speed",
    "peers",
    "profile_events",
    "provenance",
    "random_request",
    "roofline",
    "speed",
    "statistics",
    "time_split",
]
