"""card.md: what a bundle is, for the person who finds it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from nextscale import __version__
from nextscale.runtime._manifest import ModelInfo
from nextscale.runtime._sizes import SizeInfo, sizes_in_words
from nextscale.runtime._text import printable


def bundle_card(
    name: str,
    description: str,
    licence: str,
    model: ModelInfo,
    recipe: Mapping[str, Any],
    sizes: Sequence[SizeInfo] = (),
) -> str:
    """The text of card.md; model and sizes as in the manifest."""
    height, width = model.image_size
    of = f"{model.num_classes} classes" if model.num_classes else "of text"
    built = f"| sizes, width to height | {sizes_in_words(sizes)} |\n" if sizes else ""
    tokens = "bits" if model.vocab_size == 2 else f"{model.vocab_size} entries of {model.latent_channels}"
    settings = {key: value for key, value in recipe.items() if key not in ("agreement", "kernels", "saturation")}
    return f"""# {name}

{printable(description)}

| | |
|---|---|
| pictures | {height} x {width} RGB, {of} |
{built}| stages | {model.num_stages}: {model.stages_in_words} ({model.num_tokens} tokens) |
| transformer | depth {model.depth}, width {model.embed_dim}, {model.num_heads} heads |
| codebook | {tokens} |
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
