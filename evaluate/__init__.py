"""How good a bundle is: teacher-forced agreement and divergence from full precision."""
