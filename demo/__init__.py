"""The embedded demo model: weights, class names, model card and recipe."""
