from __future__ import annotations

import pytest

from nextscale.evaluate.imagenet_classes import imagenet_ids, imagenet_names
from nextscale_demo import class_names


def test_the_names_are_those_of_ilsvrc_2012() -> None:
    names = imagenet_names()
    assert len(names) == 1000
    assert (names[0], names[207], names[999]) == (
        "tench, Tinca tinca",
        "golden retriever",
        "toilet tissue, toilet paper, bathroom tissue",
    )
    assert [i for i, name in enumerate(names) if name == "crane"] == [134, 517]
    assert len(set(names)) == 999


def test_classes_are_found_by_name() -> None:
    names = ["goldfish, Carassius auratus", "Tabby_Cat", "crane", "my dog", "golden retriever", "tench"]
    assert imagenet_ids(names, 6) == ((1,), (), (134, 517), (), (207,), (0,))
    assert imagenet_ids(["tabby, tabby cat"], 1) == ((281,),)


@pytest.mark.parametrize(("classes", "known"), [(1000, True), (150, False)])
def test_without_names_a_thousand_classes_are_imagenet(classes: int, known: bool) -> None:
    assert imagenet_ids(None, classes) == tuple((i,) if known else () for i in range(classes))


def test_all_classes_of_the_demo_model_are_known() -> None:
    names = class_names()
    assert all(imagenet_ids(names, len(names)))
