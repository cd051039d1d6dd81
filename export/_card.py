"""card.md: what a bundle is, for the person who finds it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from nextscale import __version__
from nextscale.runtime._manifest import ModelInfo
from nextscale.runtime._text import printable


def bundle_card(name: str, description: str, licence: str, model: ModelInfo, recipe: Mapping[str, Any]) -> str:
    """The text of card.md."""
    height, width = model.image_size
    settings = {key: value for key, value in recipe.items() if key not in ("agreement", "kernels", "saturation")}
    return f"""# {name}

{printable(description)}

| | |
|---|---|
| pictures | {height} x {width} RGB, {model.num_classes} classes |
| stages | {model.num_stages}: {model.stages_in_words} ({model.num_tokens} tokens) |
| transformer | depth {model.depth}, width {model.embed_dim}, {model.num_heads} heads |
| codebook | {model.vocab_size} entries of {model.latent_channels} |
| recipe | {recipe["name"]} |
| licence | {licence} |
| made by | nextscale {__version__} |

Recipe:

```json
{json.dumps(settings, indent=2)}
```

{_agreement(recipe)}
`nextscale bench` measures speed and memory on a machine, `nextscale verify` checks that this folder makes the tokens
it made when it was built.
"""


def _agreement(recipe: Mapping[str, Any]) -> str:
    """How good it is, as the build measured it."""
    if "agreement" not in recipe:
        return ""
    found = recipe["agreement"]
    return (
        f"Compared with full precision on {found['images']} sampled images at cfg_scale {found['cfg_scale']:g}, both "
        f"fed the same tokens: KL {found['kl']:.4f} nats per token, likeliest entry the same for {found['top1']:.1%} "
        "of the tokens."
    )
