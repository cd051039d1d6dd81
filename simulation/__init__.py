"""The torch twin of the integer graphs, differentiable, and the reconstruction of weights with it."""

__all__ = [
    "infinity_images",
    "reconstruct",
    "reconstruction_settings",
    "rounding",
    "simulated_agreement",
    "simulated_attention",
    "simulated_generation",
    "simulated_infinity",
    "simulated_model",
    "simulated_pictures",
    "simulated_ranges",
    "simulated_var",
    "teacher_forced_images",
    "var_images",
]
