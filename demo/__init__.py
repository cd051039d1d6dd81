"""How the demo model was made: its training programs. What they made is the distribution in `nextscale-demo/`."""
