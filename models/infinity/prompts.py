"""What calibration's images are of: prompts of a file, one a line, or plain ones that come with nextscale."""

from __future__ import annotations

from pathlib import Path

from nextscale.runtime._errors import NextscaleError
from nextscale.runtime._regular_file import require_regular

MAX_PROMPTS = 100_000

# Things, places, people, light, pictures that are no photographs, counts, colours and lettering; long and short.
PROMPTS = (
    "a red apple on a wooden table",
    "a dog running along the beach at sunset",
    "a city street at night after rain, neon signs reflected in the puddles",
    "a portrait of an old fisherman with a grey beard",
    "mountains covered in snow under a clear blue sky",
    "a bowl of noodle soup with a boiled egg and spring onions",
    "a watercolour painting of a village by a river",
    "an astronaut riding a horse on the moon",
    "a steam locomotive crossing a stone bridge in autumn",
    "three cats sleeping on a green sofa",
    "a close-up of a bee on a sunflower",
    "a modern kitchen with white cabinets and a large window",
    "a lighthouse on a cliff during a storm",
    "a child blowing soap bubbles in a garden",
    "a vintage car parked in front of a diner",
    "an oil painting of a bowl of fruit in the style of the Dutch masters",
    "a forest path in morning fog, rays of light between the trees",
    "a stack of old books and a cup of tea on a windowsill",
    "a market stall full of vegetables, many people in the background",
    "a glass sphere on a marble floor, studio lighting, high detail",
    "a wooden sign that says OPEN hanging on a blue door",
    "a flock of birds over a lake",
    "a knight in silver armour holding a sword",
    "a plate with two pancakes, honey and blueberries",
    "an aerial photograph of a winding road through green hills",
    "a robot watering flowers on a balcony",
    "a black and white photograph of a jazz musician playing the saxophone",
    "a small house with a red roof in a field of lavender",
    "a pencil sketch of a cathedral",
    "an underwater scene with coral, turtles and colourful fish",
    "a young woman in a yellow raincoat waiting at a bus stop",
    "a desert with sand dunes and a caravan of camels",
    "a chess board in the middle of a game, shallow depth of field",
    "a fox in the snow looking at the camera",
    "a workshop with tools on the wall and wood shavings on the floor",
    "a hot air balloon above a valley at sunrise",
    "a cartoon drawing of a happy penguin wearing a scarf",
    "a teapot, four cups and a sugar bowl made of blue porcelain",
    "a waterfall in a jungle",
    "a football match in a full stadium seen from the stands",
    "a night sky with the milky way above a tent",
    "a bicycle leaning against a brick wall",
    "a baker taking bread out of the oven",
    "an isometric illustration of a tiny island with a palm tree",
    "a bridge over a canal in the evening light, boats moored along the bank",
    "a purple flower with drops of dew",
    "a library with tall shelves and a ladder",
    "a horse galloping through shallow water",
    "a map of an imaginary country on old paper",
    "a train station with people waiting, seen from above",
    "a slice of chocolate cake on a white plate",
    "an owl on a branch in the moonlight",
    "a harbour with fishing boats and gulls",
    "a doctor talking to a patient in a bright room",
    "a castle on a hill surrounded by clouds, fantasy art",
    "a red and a blue ball on a grey carpet",
    "a field of wheat with a storm approaching",
    "a violin lying on sheet music",
    "a mosaic of a peacock",
    "a skyscraper of glass seen from the street",
    "an elephant and its calf at a waterhole",
    "a table set for dinner with candles and wine glasses",
    "a poster with the words SUMMER FESTIVAL in bold letters",
    "a quiet street with cherry trees in blossom",
)


def read_prompts(path: Path) -> tuple[str, ...]:
    """The lines of a UTF-8 file that are not blank, without the space around them.

    Raises:
        NextscaleError: it cannot be read, has no such line or too many, or is no text.
    """
    require_regular(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise NextscaleError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise NextscaleError(f"{path}: no text in UTF-8; expected one prompt a line") from None
    prompts = tuple(line.strip() for line in text.splitlines() if line.strip())
    if not 1 <= len(prompts) <= MAX_PROMPTS:
        raise NextscaleError(f"{path}: expected 1 to {MAX_PROMPTS} prompts, one a line, found {len(prompts)}")
    return prompts
