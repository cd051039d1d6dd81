"""card.md: what a bundle is, for the person who finds it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from nextscale import __version__
from nextscale.runtime.manifest import ModelInfo


def bundle_card(name: str, description: str, licence: str, model: ModelInfo, recipe: Mapping[str, Any]) -> str:
    """The text of card.md."""
    size = model.image_size
    return f"""# {name}

{description}

| | |
|---|---|
| pictures | {size} x {size} RGB, {model.num_classes} classes |
| stages | {len(model.patch_nums)}: {", ".join(map(str, model.patch_nums))} ({model.num_tokens} tokens) |
| transformer | depth {model.depth}, width {model.embed_dim}, {model.num_heads} heads |
| codebook | {model.vocab_size} entries of {model.latent_channels} |
| recipe | {recipe["name"]} |
| licence | {licence} |
| made by | nextscale {__version__} |

Recipe:

```json
{json.dumps(dict(recipe), indent=2)}
```

How good it is on your data: `nextscale bench` measures speed and memory, `nextscale verify` checks that this folder
makes the tokens it made when it was built.
"""
