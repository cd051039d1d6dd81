"""Train small.model, a sentencepiece model as T5 has them but for its size: the real one cannot be had offline.

    python tests/goldens/train_sentencepiece.py

Unigram pieces, <pad> 0, </s> 1, <unk> 2, no pieces for bytes. Its text is made here; its rules are those of nmt_nfkc,
T5's, for some blocks of Unicode: the whole table takes 240 KB.
"""

from __future__ import annotations

import io
import os
import random
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import sentencepiece

OUT = Path(__file__).absolute().with_name("small.model")
PIECES, SENTENCES = 1000, 8000
# Latin, punctuation, number forms, CJK punctuation, ligatures, full width.
BLOCKS = ((0x20, 0x250), (0x2000, 0x2190), (0x3000, 0x3040), (0xFB00, 0xFB07), (0xFF01, 0xFF5F))
MARKS = "\u0300\u0301\u0302\u0303\u0308\u030a\u0327"
SPACES = (0x9, 0xA, 0xC, 0xD, 0x1680, *range(0x200B, 0x2010), 0x2028, 0x2029, 0x2581, 0xFEFF, 0xFFFD)
REMOVED = (*range(0x1, 0x9), 0xB, *range(0xE, 0x20), 0x7F, 0x8F, 0x9F)

ADJECTIVES = (
    "red old small quiet wooden glass golden enormous rusty frozen striped painted broken bright purple tiny curious "
    "sleeping ancient transparent foggy elegant friendly mechanical hand-made half-open unfinished photorealistic"
)
THINGS = (
    "fox lighthouse teapot bicycle piano mountain cathedral umbrella astronaut robot garden window dragon violin "
    "library fisherman market train bridge waterfall portrait castle telescope elephant butterfly kitchen snowman "
    "jalapeño façade fiancée smörgåsbord señora crème brûlée grandmother Übermut"
)
VERBS = "stands/sleeps/waits/is floating/is sitting/was painted/dances/shines/disappears/doesn't move/can't be seen"
PLACES = (
    "beside the sea/under a snowy pine/on the table/inside an abandoned factory/above the clouds/in the rain/between "
    "two houses/at the end of the street/behind the door/near Kraków/in São Paulo/over Zürich/on Mars"
)
LIGHTS = (
    "at dawn/in soft morning light/with long shadows/by candlelight/under neon signs/in fog/at 5 o'clock/by moonlight "
    "(no flash)/with a 35 mm lens/in the 1920s/at f/2.8/in October 2024/67% finished"
)
STYLES = (
    "oil on canvas/watercolour/photograph, 8k/pencil sketch/3d render, highly detailed/cinematic, wide angle/pixel "
    "art/woodcut: black & white/high contrast; minimal/“Impressionist”/4:3/#1 poster!/who knows?"
)
# Of these invented words are made, so that there is more than whole words to learn.
SYLLABLES = (
    "al an ar ba be bri ca chi co da del dor e el en fa fi flo ga gen gra ha hel in is jo ka kin la le light lo lun ma "
    "men mi mo na ne ni no o or pa pel per pi qua ra re ri ro sa se shi sol sta sy ta te ti to tra tur ul va ver vi "
    "wa wind ya ze ing ed er ness less ful ly est tion ment"
)


def rules() -> dict[str, str]:
    """Text to what it is normalized to."""
    single = [chr(code) for begin, end in BLOCKS for code in range(begin, end)]
    composed = [chr(base) + mark for base in range(0x41, 0x7B) for mark in MARKS]
    normal = {text: unicodedata.normalize("NFKC", text) for text in [*single, *composed]}
    changed = {text: other for text, other in normal.items() if other != text}
    return changed | {chr(code): " " for code in SPACES} | {chr(code): "" for code in REMOVED}


def sentences() -> Iterator[str]:
    """Descriptions of pictures, the same each time."""
    rng = random.Random(0)
    adjectives, things, syllables = (words.split() for words in (ADJECTIVES, THINGS, SYLLABLES))
    verbs, places, styles = (phrases.split("/") for phrases in (VERBS, PLACES, STYLES))
    lights = LIGHTS.replace("f/2.8", "f|2.8").split("/")
    for _ in range(SENTENCES):
        name = "".join(rng.choices(syllables, k=rng.randint(1, 4)))
        named = [rng.choice(things), *rng.sample([name], rng.randint(0, 1))]
        subject = " ".join([*rng.sample(adjectives, rng.randint(0, 2)), *named])
        article = rng.choice(["A", "The", "One", "a", "the", "No"])
        scene = f"{article} {subject} {rng.choice(verbs)} {rng.choice(places)}"
        parts = [scene, rng.choice(lights).replace("|", "/"), rng.choice(styles)]
        yield ", ".join(parts[: rng.randint(1, 3)]) + rng.choice([".", "", "!", " - "])


def codes(text: str) -> str:
    return " ".join(f"{ord(character):X}" for character in text)


def main() -> None:
    model = io.BytesIO()
    with TemporaryDirectory() as folder:
        os.chdir(folder)  # the model keeps the name of the table
        Path("rules.tsv").write_text("".join(f"{codes(text)}\t{codes(normal)}\n" for text, normal in rules().items()))
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=sentences(),
            model_writer=model,
            model_type="unigram",
            vocab_size=PIECES,
            character_coverage=1.0,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            normalization_rule_tsv="rules.tsv",
            num_threads=1,
            minloglevel=2,
        )
    OUT.write_bytes(model.getvalue())
    print(OUT, len(model.getvalue()), "bytes, sentencepiece", sentencepiece.__version__)


if __name__ == "__main__":
    main()
