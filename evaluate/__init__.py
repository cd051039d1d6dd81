"""Quality: agreement with full precision, metrics of pictures, errors of attention, saturation."""
