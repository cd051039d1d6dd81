"""How the emoji model was made: a small Infinity that draws emoji from text. README.md has the commands."""
