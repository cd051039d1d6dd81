"""Speed and memory: contenders in turns, confidence intervals, rooflines, peers."""
