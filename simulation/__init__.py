"""The torch twin of the integer graphs, differentiable, and the reconstruction of weights with it."""
