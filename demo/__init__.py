"""How the demo models were made: its training programs. What they made is the distribution in `nextscale-demo/`."""
