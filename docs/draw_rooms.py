"""Draw the rooms of the package and the imports between them, from the code itself.

    python docs/draw_rooms.py            # writes docs/images/rooms.png and the table in docs/architecture.md
    python docs/draw_rooms.py --check    # fails if the table is not what the code's imports say, or a folder too large

Rooms stand in the order of the import contract in pyproject.toml; every arc goes from a room down to one that it
imports, and is as wide as the number of its modules that do so.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click
import grimp

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PAGE, PICTURE = ROOT / "docs" / "architecture.md", ROOT / "docs" / "images" / "rooms.png"
CODE, LARGEST_SHARE = (".py", ".cpp", ".hpp", ".cs"), 0.15
BEGIN, END = "<!-- rooms: made by docs/draw_rooms.py -->\n", "<!-- end of rooms -->"
Arrows = dict[tuple[str, str], int]


@click.command(help=__doc__)
@click.option("--check", is_flag=True)
def main(check: bool) -> None:
    rooms = ordered_rooms()
    arrows = count_arrows(rooms)
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    expected = before + BEGIN + table(rooms, arrows) + END + rest.partition(END)[2]
    require_small(rooms)
    if check:
        sys.exit(None if page == expected else f"{PAGE.name}: its table of rooms is old; run python docs/draw_rooms.py")
    PAGE.write_text(expected, encoding="utf-8")
    draw(rooms, arrows)


def ordered_rooms() -> list[str]:
    """Room names from the highest to the lowest."""
    document = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (layers,) = (found for found in document["tool"]["importlinter"]["contracts"] if found["type"] == "layers")
    return [room.strip() for layer in layers["layers"] for room in layer.split("|")]


def count_arrows(rooms: list[str]) -> Arrows:
    """For each pair of rooms how many imports the first makes of the second."""
    graph, arrows = grimp.build_graph("nextscale"), Arrows()
    for module in graph.modules:
        for imported in graph.find_modules_directly_imported_by(module):
            pair = room_of(module), room_of(imported)
            if pair[0] != pair[1] and set(pair) <= set(rooms):
                arrows[pair] = arrows.get(pair, 0) + 1
    return arrows


def room_of(module: str) -> str:
    """The folder that a module lies in; the package itself is no room."""
    return module.split(".")[1] if "." in module else ""


def count_lines(room: str) -> int:
    """Lines of code in a folder."""
    paths = [path for path in (ROOT / room).rglob("*") if path.suffix in CODE and "nextscale-demo" not in path.parts]
    return sum(len(path.read_text(encoding="utf-8").splitlines()) for path in paths)


def require_small(rooms: list[str]) -> None:
    """Fail if a top-level folder of code, tests apart, has more than its share of all lines."""
    lines = {folder: count_lines(folder) for folder in (*rooms, "benchmarks", "examples", "ports")}
    largest = max(lines, key=lambda folder: lines[folder])
    share = lines[largest] / sum(lines.values())
    if share > LARGEST_SHARE:
        sys.exit(f"{largest}/ has {share:.1%} of the lines, more than {LARGEST_SHARE:.0%}: split it or make it smaller")


def first_sentence(room: str) -> str:
    """What the room's docstring says it is."""
    text = (ROOT / room / "__init__.py").read_text(encoding="utf-8").split('"""')[1]
    return " ".join(text.partition("\n\n")[0].split())


def table(rooms: list[str], arrows: Arrows) -> str:
    """Markdown: each room, what it is, and the rooms that it imports."""
    lines = ["| room | what it is | imports |", "|---|---|---|"]
    for room in rooms:
        below = ", ".join(f"`{other}`" for other in rooms if (room, other) in arrows)
        lines.append(f"| `{room}/` | {first_sentence(room)} | {below or 'no other room'} |")
    return "\n".join(lines) + "\n"


def draw(rooms: list[str], arrows: Arrows) -> None:
    """An arc diagram: rooms in a column, an arc for each pair."""
    from matplotlib.figure import Figure
    from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

    figure = Figure(figsize=(6.5, 0.62 * len(rooms) + 0.8))
    axes = figure.subplots()
    total = sum(map(count_lines, rooms))
    place = {room: -float(i) for i, room in enumerate(rooms)}
    colors = {room: f"C{i % 10}" for i, room in enumerate(rooms)}
    for room, y in place.items():
        box = FancyBboxPatch((-2.6, y - 0.3), 2.5, 0.6, boxstyle="round,pad=0.02", facecolor="white", linewidth=1.5)
        box.set_edgecolor(colors[room])
        axes.add_patch(box)
        lines = count_lines(room)
        axes.text(-2.5, y + 0.02, room, va="center", fontsize=11, family="monospace")
        axes.text(-0.2, y, f"{lines:,}\n{lines / total:.0%}", va="center", ha="right", fontsize=7, color="gray")
    for (source, target), count in arrows.items():
        up = place[source] < place[target]
        arc = FancyArrowPatch(
            (-0.04, place[source] - 0.08),
            (-0.04, place[target] + 0.08),
            connectionstyle=f"arc3,rad={0.55 if up else -0.55}",
            arrowstyle="-|>",
            mutation_scale=9,
            linewidth=0.4 + 0.35 * count**0.5,
            color="red" if up else colors[source],
            alpha=1.0 if up else 0.65,
        )
        axes.add_patch(arc)
    axes.set(xlim=(-2.8, 1.9), ylim=(-len(rooms) + 0.3, 0.7))
    axes.set_axis_off()
    axes.set_title(
        "An arc goes from a room to one that it imports, as wide as it does so often.", fontsize=9, loc="left"
    )
    PICTURE.parent.mkdir(exist_ok=True)
    figure.savefig(PICTURE, dpi=110, bbox_inches="tight")


if __name__ == "__main__":
    main()
