"""Class names in the forms that people have them in, and what is refused."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from nextscale.models._class_names import CLASS_NAMES_LIMIT, read_class_names
from nextscale.runtime._errors import NextscaleError

NAMES = ["tench, Tinca tinca", "goldfish (not n01443537 x)", "caf\u00e9 [sign]", "carpenter's kit"]
WORDNET_IDS = ["n01440764", "n01443537", "n01484850", "n02966687"]
PAIRS = list(zip(WORDNET_IDS, NAMES, strict=True))
BY_ID = dict(enumerate(NAMES))
FORMS = {
    "lines": "\n".join(NAMES),
    "lines of Windows with blanks": "\ufeff" + "\r\n\r\n ".join(NAMES) + "\r\n",
    "WordNet id and tab": "\n".join("\t".join(pair) for pair in PAIRS),
    "WordNet id and space": "\n".join(" ".join(pair) for pair in PAIRS),
    "WordNet id and comma": "\n".join(",".join(pair) for pair in PAIRS),
    "class id and space": "\n".join(f"{label} {name}" for label, name in BY_ID.items()),
    "class id and colon": "\n".join(f"{label}: {name}" for label, name in BY_ID.items()),
    "class id and comma": "\r\n".join(f"{label},{name}" for label, name in BY_ID.items()),
    "class id, WordNet id": "\n".join(f"{label}\t{' '.join(pair)}" for label, pair in enumerate(PAIRS)),
    "class ids in another order": "\n".join(f"{label}\t{NAMES[label]}" for label in (2, 0, 3, 1)),
    "the inside of a dictionary": "\n".join(f" {label}: {name!r}," for label, name in BY_ID.items()),
    "list": json.dumps(NAMES),
    "list of Windows": "\ufeff" + json.dumps(NAMES, indent=1).replace("\n", "\r\n"),
    "list of pairs": json.dumps(PAIRS),
    "object of names": json.dumps(BY_ID),
    "object in another order": json.dumps({str(label): NAMES[label] for label in (2, 0, 3, 1)}),
    "object of pairs": json.dumps(dict(enumerate(PAIRS)), indent=1),
    "object of synonyms": json.dumps({label: [wnid, *name.split(", ")] for label, (wnid, name) in enumerate(PAIRS)}),
    "object of ids": json.dumps({name: label for label, name in BY_ID.items()}),
    "object of WordNet ids": json.dumps(dict(reversed(PAIRS))),
    "a model's configuration": json.dumps({"model_type": "vit", "id2label": BY_ID}),
    "dictionary": repr(BY_ID),
    "dictionary as it is passed around": "{"
    + ",\n ".join(f"{label}: {name!r}" for label, name in BY_ID.items())
    + "}\n",
    "dictionary with a comma at its end": repr(BY_ID)[:-1] + ",\n}",
    "dictionary of text ids": repr({str(label): name for label, name in BY_ID.items()}),
    "dictionary of tuples": repr(dict(enumerate(PAIRS))),
    "dictionary of ids": repr({name: label for label, name in BY_ID.items()}),
    "tuple": repr(tuple(NAMES)),
    "class ids from 1": "\n".join(f"{label + 1} {name}" for label, name in BY_ID.items()),
    "quoted lines": "\n".join(json.dumps(name, ensure_ascii=False) for name in NAMES),
    "the inside of a list": "\n".join(f"    {name!r}," for name in NAMES),
    "quoted lines after WordNet ids": "\n".join(f'{wnid} "{name}"' for wnid, name in PAIRS),
    "CSV": "id,name\n" + "\n".join(f'{label},"{name}"' for label, name in BY_ID.items()),
    "CSV of Windows": "\ufeffClass ID; Class Name\r\n" + "\r\n".join(f"{label}; {n}" for label, n in BY_ID.items()),
    "CSV of more columns": "wnid\tname\tindex\n"
    + "\n".join(f"{WORDNET_IDS[label]}\t{NAMES[label]}\t{label}" for label in (2, 0, 3, 1)),
    "CSV of labels": "class_name,label\n" + "\n".join(f'"{name}",{label}' for label, name in BY_ID.items()),
    "CSV of other synsets": "synset,name\n" + "\n".join(f'x{9 - label}.n.01,"{n}"' for label, n in BY_ID.items()),
    "CSV of WordNet ids": "id,name\n" + "\n".join(f'{wnid},"{name}"' for wnid, name in PAIRS),
    "object of labels": json.dumps({"version": 2, "labels": NAMES}),
    "object of names by id": json.dumps({"names": BY_ID, "nc": 4}),
    "list of objects": json.dumps([{"id": label, "name": NAMES[label]} for label in (2, 0, 3, 1)]),
    "list of objects from 1": json.dumps([{"name": name, "id": label + 1} for label, name in BY_ID.items()]),
    "list of objects without ids": json.dumps([{"wnid": wnid, "name": name} for wnid, name in PAIRS]),
    "object of objects": json.dumps({"categories": [{"id": label, "name": name} for label, name in BY_ID.items()]}),
    "JSON lines": "\n".join(json.dumps({"id": label, "name": name}) for label, name in BY_ID.items()) + "\n",
    "JSON lines of pairs": "\n\n".join(map(json.dumps, PAIRS)),
    "dictionary below a comment": f"# ImageNet\n\n{BY_ID!r}",
    "dictionary below an import": f"from collections import OrderedDict\nimport os\n\nNAMES = OrderedDict({BY_ID!r})\n",
    "dictionary with a type": f"names: dict[int, str] = {BY_ID!r}",
    "dictionary of a list": f"import collections\nx = collections.OrderedDict({list(BY_ID.items())!r})",
    "list of a call": f"names = list({tuple(NAMES)!r})",
    "list of a program": f"CLASSES = {NAMES!r}\n",
    "list of a script": f"const names = {json.dumps(NAMES)};\n",
}


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "names"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize("text", FORMS.values(), ids=FORMS.keys())
def test_every_form_of_class_names_is_read(tmp_path: Path, text: str) -> None:
    assert read_class_names(write(tmp_path, text)) == NAMES


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_encodings_that_editors_write(tmp_path: Path, encoding: str) -> None:
    assert read_class_names(write(tmp_path, "\n".join(NAMES).encode(encoding))) == NAMES


def test_no_file_is_no_names() -> None:
    assert read_class_names(None) is None


def test_names_that_begin_with_a_number_are_names(tmp_path: Path) -> None:
    names = ["3 wheeler", "bicycle", "car"]
    assert read_class_names(write(tmp_path, "\n".join(names))) == names
    assert read_class_names(write(tmp_path, "3 wheeler")) == ["3 wheeler"]


def test_numbers_that_no_class_has_are_parts_of_names(tmp_path: Path) -> None:
    for names in (["8 ball", "9 ball"], ["8 ball", "bicycle", "3 wheeler", "car"], ["1000 island", "400, that is all"]):
        assert read_class_names(write(tmp_path, "\n".join(names))) == names


def test_quotes_within_names_stay(tmp_path: Path) -> None:
    names = ['"a" and "b"', "'tis", 'the "x"', "rock 'n' roll"]
    assert read_class_names(write(tmp_path, "\n".join(names))) == names
    assert read_class_names(write(tmp_path, '"a 12"" ruler"\n\'it\\\'s\'')) == ['a 12" ruler', "it's"]


def test_the_numbers_of_lines_with_wordnet_ids_are_ids(tmp_path: Path) -> None:
    """If they say the same as the WordNet ids; those of ImageNet's development kit do not."""
    assert read_class_names(write(tmp_path, "n01443537 2 gold_fish\nn01440764 1 tench")) == ["tench", "gold fish"]
    assert read_class_names(write(tmp_path, "n01440764 8 ball\nn01443537 9_ball")) == ["8 ball", "9_ball"]
    refused = "the first class is kit fox by the numbers, tench by the WordNet ids; leave out those that the model does"
    for text in (
        "n02119789 1 kit_fox\nn01440764 2 tench",
        "1 n02119789 kit fox\n2 n01440764 tench",
        "number,wnid,name\n1,n02119789,kit fox\n2,n01440764,tench",
        '{"1": ["n02119789", "kit fox"], "2": ["n01440764", "tench"]}',
    ):
        with pytest.raises(NextscaleError, match=refused):
            read_class_names(write(tmp_path, text))
    assert read_class_names(write(tmp_path, "0 n02119789 kit fox\n1 n01440764 tench")) == ["kit fox", "tench"]


@pytest.mark.parametrize(
    "text",
    [
        "n02119789 kit fox\nn01440764 tench",
        '[["n02119789", "kit fox"], ["n01440764", "tench"]]',
        "wnid,name\nn02119789,kit fox\nn01440764,tench",
        '{"wnid": "n02119789", "name": "kit fox"}\n{"wnid": "n01440764", "name": "tench"}',
    ],
    ids=["lines", "list", "CSV", "JSON lines"],
)
def test_wordnet_ids_in_another_order_are_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(NextscaleError, match=r"are not in order, as .*: n01440764 stands below n02119789; sort it by"):
        read_class_names(write(tmp_path, text))


def test_several_classes_may_have_one_name(tmp_path: Path) -> None:
    assert read_class_names(write(tmp_path, "crane\ncrane\n")) == ["crane", "crane"]


def test_nothing_in_a_file_is_run(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    with pytest.raises(NextscaleError, match="neither a JSON document"):
        read_class_names(write(tmp_path, f"[open({str(ran)!r}, 'w').name]"))
    assert not ran.exists()


NEITHER = "neither a JSON document ("
BAD_NAMES = {
    "empty": ("", "no names; expected one class name per line"),
    "empty list": ("[]", "no names; "),
    "cut list": ('["cat", ', NEITHER),
    "deep": ("[" * 100_000, "neither a JSON document nor a Python literal (nested too deeply)"),
    "deep dictionary": ("{0:" * 100_000, NEITHER),
    "deep sum": ("[" + "-" * 100_000 + "1]", NEITHER),
    "call": ("{0: str(1)}", NEITHER),
    "spread": ("{**{}}", NEITHER),
    "zero byte": ("['a\0']", NEITHER),
    "list of numbers": ("[1, 2]", "entry 0 is 1: expected a name, or a WordNet id and names"),
    "list of null": ("[null]", "entry 0 is None: expected a name"),
    "bytes": ("[b'cat']", "entry 0 is b'cat': expected a name"),
    "set": ("{'cat'}", "{'cat'} is no list of names; expected "),
    "text in brackets": ("('cat')", "'cat' is no list of names; expected "),
    "pair of numbers": ('{"0": ["tench", 1]}', "entry 0 is ['tench', 1]: expected a name, or a WordNet id and names"),
    "empty pair": ('{"0": []}', "entry 0 is []: expected a name"),
    "object without 0 and 2": ('{"1": "cat", "3": "dog"}', "of the class ids 1 to 2, 2 is missing"),
    "several lists": (
        '{"labels": ["a"], "names": ["b"]}',
        "several lists of names, labels and names; keep one of them",
    ),
    "objects without names": ('[{"0": "cat"}, {"1": "dog"}]', "entry 0 has ['0']: expected a name, and perhaps an id"),
    "objects of other keys": ('[{"id": 0, "name": "a"}, {"id": 1}]', "entry 1 is {'id': 1}: expected ['id', 'name']"),
    "objects without numbers": ('[{"id": "x", "name": "a"}]', "entry 0 has 'x' for its class id; expected a number"),
    "CSV without quotes": (
        "id,name\n0,tench, Tinca tinca",
        'the line "0,tench, Tinca tinca" has 3 values, expected 2',
    ),
    "CSV with a quote left open": ('id,name\n0,"tench\n1,cat', 'the lines below "id,name" are no table ('),
    "CSV with a quote over two lines": ('id,name\n0,"tench\n1,cat"', 'the line "0,"tench" has 2 values, expected 2'),
    "CSV header": ("id,name", "no names; expected one class name per line"),
    "two assignments": ("A = ['cat']\nB = ['dog']", NEITHER),
    "a call of a call": ("dict(dict(open('x')))", NEITHER),
    "a list of a dictionary": ("list({0: 'a'})", NEITHER),
    "a dictionary of words": ("dict(a=0)", NEITHER),
    "a dictionary of texts": ("OrderedDict(['abc'])", NEITHER),
    "object with gaps": (
        json.dumps(dict.fromkeys(range(0, 40, 4), "x")),
        "of the class ids 0 to 9, 1, 2, 3, 5, 6 and 2 m",
    ),
    "id twice": ('{"0": "cat", "0": "dog"}', "the class 0 is there twice"),
    "id twice in two forms": ("{0: 'cat', '0': 'dog'}", "the class 0 is there twice"),
    "id twice in a dictionary": ("{0: 'cat', 0: 'dog'}", "the class 0 is there twice"),
    "WordNet id twice": ("n01440764 a\nn01440764 b", "the class n01440764 is there twice"),
    "key that is no id": ('{"0": "cat", "tail": "dog"}', "the key 'tail' is no class id; expected "),
    "negative id": ("{-1: 'cat'}", "the key -1 is no class id; expected "),
    "true as id": ("{True: 'cat'}", "the key True is no class id; expected "),
    "line without id": ("0 cat\n1 dog\nbird\n", 'the line "bird" begins with no class id, though most lines do'),
    "lines from 1 with a gap": ("1 cat\n2 dog\n4 cow", "of the class ids 1 to 3, 3 is missing"),
    "line twice": ("0 cat\n0 dog", "the class 0 is there twice"),
    "empty name": ('["cat", " "]', "the name of class 1 is empty"),
    "long name": (f'["cat", "{"é" * 501}"]', "the name of class 1 has more than 1000 bytes: éé"),
    "too many": ("a\n" * 100_001, "100001 names; expected at most 100000"),
    "too many values": ("{" + "0:'a'," * 200_001 + "}", "over 200000 values; expected at most 100000 names"),
    "tab": ("cat\na\tdog", r"the name of class 1 is not printable text: 'a\tdog'"),
    "escape": ("\x1b[31mcat", r"the name of class 0 is not printable text: '\x1b[31mcat'"),
    "newline in JSON": ('["a\\nb"]', r"the name of class 0 is not printable text: 'a\nb'"),
    "half a character in JSON": ('["\\ud800"]', r"the name of class 0 is not printable text: '\ud800'"),
}


@pytest.mark.parametrize(("text", "message"), BAD_NAMES.values(), ids=BAD_NAMES.keys())
def test_bad_class_names_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(NextscaleError) as error:
        read_class_names(path)
    assert str(error.value).startswith(f"{path}: {message}")
    assert "\n" not in str(error.value)


def test_files_that_are_no_text_are_refused(tmp_path: Path) -> None:
    with pytest.raises(NextscaleError, match="not UTF-8 text: line 2 has the byte 0xe9, perhaps of Latin-1; save it"):
        read_class_names(write(tmp_path, b"tea\ncaf\xe9"))
    with pytest.raises(NextscaleError, match=f"over {CLASS_NAMES_LIMIT} bytes"):
        read_class_names(write(tmp_path, b"a" * (CLASS_NAMES_LIMIT + 1)))
    with pytest.raises(NextscaleError, match="cannot be read"):
        read_class_names(tmp_path)


def test_a_pipe_is_read_where_a_shell_made_it(tmp_path: Path, make_fifo: Callable[[Path], Path]) -> None:
    with pytest.raises(NextscaleError, match="not a regular file"):
        read_class_names(make_fifo(tmp_path / "fifo"))
    reader, writer = os.pipe()
    try:
        os.write(writer, b"tench\ngoldfish\n")
        os.close(writer)
        assert read_class_names(Path(f"/dev/fd/{reader}")) == ["tench", "goldfish"]
    finally:
        os.close(reader)
