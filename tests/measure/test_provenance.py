import json
import math

from nextscale.measure.provenance import finite, versions


def test_versions_name_what_matters() -> None:
    assert versions().keys() == {"nextscale", "onnxruntime", "numpy", "python"}


def test_what_is_not_finite_becomes_null() -> None:
    found = finite({"a": (1.5, math.nan), "b": [{"c": -math.inf}, "text", 3, None, True]})
    assert found == {"a": [1.5, None], "b": [{"c": None}, "text", 3, None, True]}
    json.dumps(found, allow_nan=False)
