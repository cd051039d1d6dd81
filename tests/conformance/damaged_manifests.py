"""Damage done to a manifest at random, from a seed: what a parser that trusts nothing must survive."""

import json
import random
from collections.abc import Iterator
from typing import Any

_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 3, 2**31, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1, 2**64, -(2**63), 10**30, 10**400,
    0.5, 1.0, -1e-9, 1e300, "", "B", "2B", "x", "f_hat", "float32", "../a", "a\nb", "\u0000", "\u001b[2J", "\u00e9",
    "\U0001f600", "a" * 300, "0" * 64, [], [[]], [1], [1, 2, 3], {}, {"name": "x"}, {"size": 1, "sha256": "f" * 64},
)  # fmt: skip
_INSERTS = (
    b"[" * 300, b'{"":' * 300, b"1" * 400, b"\\u0041", b"\\", b"\\q", b"/**/", b"\x7f", b"\xc0\x80", b"\xc3\xa9",
    b"\xe2\x80", b"\xf0\x80\x80\x80", b"\xf5\x80\x80\x80",
)  # fmt: skip
_MARKS = b'{}[]",:\\0123456789-+.eEtfn \x00'


def damaged_manifests(manifest: dict[str, Any], count: int, seed: int) -> Iterator[bytes]:
    """`count` texts, each the manifest with one to three changes to its values, its bytes or both."""
    rng = random.Random(seed)
    for _ in range(count):
        document = json.loads(json.dumps(manifest))
        kind = rng.randrange(3)
        if kind != 1:
            for _ in range(rng.choice((1, 1, 1, 2, 3))):
                _damage_value(document, rng)
        text = json.dumps(document).encode()
        if kind != 0:
            for _ in range(rng.choice((1, 1, 1, 2, 3))):
                text = _damage_bytes(text, rng)
        yield text


def _damage_value(document: dict[str, Any], rng: random.Random) -> None:
    places = list(_places(document))
    if not places:
        return
    owner, key = rng.choice(places)
    change = rng.randrange(5)
    if change == 0:
        del owner[key]
    elif change == 1 and isinstance(owner, list):
        owner.insert(key, json.loads(json.dumps(owner[key])))
    elif change == 2 and isinstance(owner, dict):
        owner[rng.choice(("", "x", key + "x", "../" + key, key.upper()))] = owner.pop(key)
    elif change == 3:
        owner[key] = rng.choice(([owner[key]], {"x": owner[key]}))
    else:
        owner[key] = json.loads(json.dumps(rng.choice(_VALUES)))


def _damage_bytes(text: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(text) + 1)
    length = rng.randint(1, 40)
    change = rng.randrange(6)
    if change == 0:
        return text[:at]
    if change == 1:
        return text[:at] + bytes([rng.randrange(256)]) + text[at + 1 :]
    if change == 2:
        return text[:at] + text[at + length :]
    if change == 3:
        return text[:at] + text[at : at + length] + text[at:]
    if change == 4:
        return text[:at] + bytes([rng.choice(_MARKS)]) + text[at:]
    return text[:at] + rng.choice(_INSERTS) + text[at:]


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every place in a document, as its owner and its key there."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from _places(value[key])
