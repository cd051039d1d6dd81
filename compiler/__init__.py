"""The driver: a recipe into a plan, a plan through the passes, graphs into a bundle with a certificate."""
