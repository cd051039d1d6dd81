"""What `generate` and `edit` make pictures of: classes or prompts, as the bundle takes them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from nextscale.runtime._bundle import Bundle
from nextscale.runtime._errors import NextscaleError
from nextscale.runtime._regular_file import read_regular


def prompts_file(name: str = "prompts") -> Callable[[Callable[..., object]], Callable[..., object]]:
    """The option --prompts, which the command gets by that name."""
    return click.option(
        "--prompts", name, type=click.Path(path_type=Path), metavar="FILE", help="Prompts, one a line, in UTF-8."
    )


_PROMPTS_LIMIT = 32 * 2**20  # bytes
_OPTIONS = (
    click.option(
        "--class",
        "classes",
        multiple=True,
        metavar="ID|NAME",
        help='Repeat for several classes; "null" is the null class.',
    ),
    click.option("--prompt", "prompts", multiple=True, metavar="TEXT", help="In place of a class; may be repeated."),
    prompts_file("file"),
    click.option("--negative", metavar="TEXT", help="What to guide away from.  [default: what the model learned]"),
)


@dataclass(frozen=True)
class Subjects:
    """What each picture is of.

    Attributes:
        bundle: that makes the pictures.
        labels: a class for each picture; None where the bundle takes prompts.
        prompts: a prompt for each picture; None where the bundle takes classes.
        negative: of all of them.
    """

    bundle: Bundle
    labels: tuple[int, ...] | None
    prompts: tuple[str, ...] | None
    negative: str | None

    def __len__(self) -> int:
        return len(self.labels if self.prompts is None else self.prompts)  # type: ignore[arg-type]

    @property
    def settings(self) -> dict[str, Any]:
        """Of a request."""
        if self.prompts is None:
            return {"class_labels": self.labels}
        return {"prompts": self.prompts, "negative": self.negative}

    @property
    def texts(self) -> dict[str, Any]:
        """The prompts of all pictures; nothing of classes, which results have by themselves."""
        return {} if self.prompts is None else self.settings

    def parameters(self, numbers: Sequence[int]) -> dict[str, Any]:
        """What a picture holds of what it is of: that of these pictures."""
        if self.prompts is None:
            assert self.labels is not None
            labels = [self.labels[number] for number in numbers]
            return {"classes": labels, "class_names": [self.bundle.class_name(label) for label in labels]}
        return {"prompts": [self.prompts[number] for number in numbers], "negative": self.negative}


@dataclass(frozen=True)
class SubjectOptions:
    """What the command line says of them."""

    classes: tuple[str, ...]
    prompts: tuple[str, ...]
    file: Path | None
    negative: str | None

    @property
    def inputs(self) -> list[Path]:
        """The files that are read."""
        return [] if self.file is None else [self.file]

    def of(self, bundle: Bundle, count: int, *, default: int | None = None) -> Subjects:
        """`count` pictures of each.

        Args:
            bundle: that is to make them.
            count: of pictures.
            default: the class where none is given; None: one must be.
        Raises:
            click.UsageError: options of what the bundle does not take, or nothing to make a picture of.
            NextscaleError: no such class, or no file of prompts.
        """
        texts = [name for name, value in (("prompt", self.prompts), ("prompts", self.file)) if value]
        texts += [] if self.negative is None else ["negative"]
        if bundle.manifest.input_of_kind("text_features") is None:
            if texts:
                raise click.UsageError(f"--{texts[0]}: this bundle makes pictures of classes: give --class")
            if not self.classes and default is None:
                raise click.MissingParameter(param_hint="'--class'", param_type="option")
            labels = [bundle.class_label(name) for name in self.classes] or [default or 0]
            return Subjects(bundle, tuple(label for label in labels for _ in range(count)), None, None)
        if self.classes:
            raise click.UsageError("--class: this bundle makes pictures of prompts: give --prompt")
        prompts = [*self.prompts, *([] if self.file is None else read_prompts(self.file))]
        if not prompts:
            raise click.UsageError("which pictures? Give --prompt, or --prompts with a file")
        return Subjects(bundle, None, tuple(text for text in prompts for _ in range(count)), self.negative)


def read_prompts(path: Path) -> list[str]:
    """The lines of a file that are not blank, without white space around them.

    Raises:
        NextscaleError: it cannot be read, is no UTF-8, too large, or has no such line.
    """
    if not path.exists():
        raise NextscaleError(f"{path}: no such file; expected prompts, one a line")
    content = read_regular(path, _PROMPTS_LIMIT, "; give the prompts in several files")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise NextscaleError(f"{path}, line {line}: no UTF-8; save the prompts as UTF-8") from None
    prompts = [line.strip() for line in text.split("\n")]
    found = [prompt for prompt in prompts if prompt]
    if not found:
        raise NextscaleError(f"{path}: no prompts; expected one a line")
    return found


def subject_options(command: Callable[..., object]) -> Callable[..., object]:
    """Those options; the command gets them as one `SubjectOptions`, `subjects`."""

    @functools.wraps(command)
    def collected(**values: Any) -> object:
        named = {name: values.pop(name) for name in ("classes", "prompts", "file", "negative")}
        return command(subjects=SubjectOptions(**named), **values)

    for option in reversed(_OPTIONS):
        collected = option(collected)
    return collected
