"""card.md: what a bundle is, for the person who finds it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from nextscale import __version__
from nextscale.export.bundle_writer import BundleInfo
from nextscale.runtime._sizes import sizes_in_words
from nextscale.runtime._text import printable


def bundle_card(info: BundleInfo, description: str) -> str:
    """The text of card.md.

    Args:
        info: all else that the bundle says.
        description: a sentence of where the weights come from.
    """
    model, recipe = info.model, info.recipe
    settings = {key: value for key, value in recipe.items() if key not in ("agreement", "kernels", "saturation")}
    return f"""# {info.name}

{printable(description)}

| | |
|---|---|
{_pictures(info)}
| transformer | depth {model.depth}, width {model.embed_dim}, {model.num_heads} heads |
| {_tokens(info)} |
| recipe | {recipe["name"]} |
| licence | {info.licence} |
| made by | nextscale {__version__} |

Recipe:

```json
{json.dumps(settings, indent=2)}
```

{_agreement(info)}
`nextscale bench` measures speed and memory on a machine, `nextscale verify` checks that this folder makes the tokens
it made when it was built.
"""


def _pictures(info: BundleInfo) -> str:
    """Which pictures it makes: lines of the table."""
    model = info.model
    if info.sizes:
        models = [model.of_size(size) for size in info.sizes]
        stages, tokens = _range([one.num_stages for one in models]), _range([one.num_tokens for one in models])
        return f"| pictures | RGB of texts: {sizes_in_words(info.sizes)} |\n| stages | {stages} ({tokens} tokens) |"
    height, width = model.image_size
    return (
        f"| pictures | {height} x {width} RGB, {model.num_classes} classes |\n"
        f"| stages | {model.num_stages}: {model.stages_in_words} ({model.num_tokens} tokens) |"
    )


def _range(numbers: list[int]) -> str:
    least, most = min(numbers), max(numbers)
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"


def _bits(info: BundleInfo) -> int:
    """Of a token; 0 where tokens are entries of a codebook."""
    shape = next(item.shape for item in info.request if item.kind == "forced_tokens")
    return int(shape[2]) if len(shape) == 3 else 0


def _tokens(info: BundleInfo) -> str:
    model, bits = info.model, _bits(info)
    return f"tokens | {bits} bits" if bits else f"codebook | {model.vocab_size} entries of {model.latent_channels}"


def _agreement(info: BundleInfo) -> str:
    """How good it is, as the build measured it."""
    if "agreement" not in info.recipe:
        return ""
    found: Mapping[str, Any] = info.recipe["agreement"]
    what, of = ("value", "bits") if _bits(info) else ("entry", "tokens")
    return (
        f"Compared with full precision on {found['images']} sampled images at cfg_scale {found['cfg_scale']:g}, both "
        f"fed the same tokens: KL {found['kl']:.4f} nats per token, likeliest {what} the same for {found['top1']:.1%} "
        f"of the {of}."
    )
