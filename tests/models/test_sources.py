"""What is refused before a model is made."""

from __future__ import annotations

from pathlib import Path

import pytest

from nextscale.models.sources import require_plain_name
from nextscale.models.var.sources import checkpoint_source, random_source
from nextscale.runtime._errors import NextscaleError


def test_class_names_are_checked_before_a_model_is_made(tmp_path: Path) -> None:
    """Neither is there a checkpoint, nor is time enough for two billion random numbers."""
    path, nowhere = tmp_path / "names", tmp_path / "nowhere.pth"
    path.write_text("cat\tdog")
    with pytest.raises(NextscaleError, match="the name of class 0 is not printable"):
        checkpoint_source("mine", nowhere, nowhere, class_names=path)
    path.write_text("cat\ndog")
    with pytest.raises(NextscaleError, match="--class-names has 2 names, but the model has 1000 classes"):
        random_source("mine", "var-d30", 0, path)
    path.write_text("\n".join(["background", *map("name {}".format, range(1000))]))
    with pytest.raises(NextscaleError, match='1001 names, but the model has 1000 classes: the first is "background"'):
        random_source("mine", "var-d30", 0, path)


@pytest.mark.parametrize("name", ["d16-int8", "Mine, caf\u00e9 (2)"])
def test_a_plain_name_names_a_bundle(name: str) -> None:
    assert require_plain_name(name) == name


@pytest.mark.parametrize("name", ["", "  ", "a\tb", "a\nb", "\x1b[31m", "\udcff", "..", "a/b", "a:b"], ids=ascii)
def test_an_odd_name_is_refused(name: str) -> None:
    with pytest.raises(NextscaleError, match=r"cannot name a bundle: .*; give another --name"):
        require_plain_name(name)
