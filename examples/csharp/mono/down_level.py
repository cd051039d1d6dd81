"""Rewrite C# 8 and 9 sources so that mono's C# 7 compiler takes them: `down_level.py FROM TO`.

Made for the managed sources of Microsoft.ML.OnnxRuntime, which build.sh fetches; what a later release adds and this
does not know, the compiler refuses by line.
"""

import re
import sys
from pathlib import Path

_STRING_OR_COMMENT = re.compile(r'//[^\n]*|/\*.*?\*/|@"(?:[^"]|"")*"|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])+\'', re.S)
_USING_DECLARATION = re.compile(r"(?<=[\s{};])using\s+((?:var|[\w.<>]+)\s+\w+\s*=[^;]*);")
_REWRITES = (
    # `x is null` and `x is not T`: patterns that C# 7 has not, or that mono's compiler does not know.
    (re.compile(r"\bis\s+not\s+null\b"), "!= null"),
    (re.compile(r"\bis\s+null\b"), "== null"),
    (re.compile(r"([\w.]+)\s+is\s+not\s+([\w.<>]+)"), r"!(\1 is \2)"),
    # A lambda that captures nothing is the same without the word.
    (re.compile(r"\bstatic\s+(\w+\s*=>)"), r"\1"),
    # `T x = new(a)`
    (re.compile(r"([\w.]+(?:<[\w.,<> ]+>)?(?:\[\])?)(\s+\w+\s*=\s*)new\s*\("), r"\1\2new \1("),
    # An assignment through the reference that a property's span returns.
    (re.compile(r"([\w.]+\.Span)(\[\w+\]\s*=[^=;][^;]*;)"), r"{ var span = \1; span\2 }"),
    # Two elements of a span in one assignment: mono's compiler stops with an internal error.
    (re.compile(r"(\w+\[\w+\]) = (\w+\[\w+\]) = (\w+);"), r"\2 = \3; \1 = \3;"),
    # Unity's package adds this to Microsoft's sources: telemetry must stay off without it.
    (re.compile(r"\bEnvironment\.SetEnvironmentVariable\([^;]*\);"), ""),
    # mono's compiler has no `unmanaged` constraint; struct admits all the types that are used.
    (re.compile(r"(where\s+\w+\s*:\s*)unmanaged\b"), r"\1struct"),
)


def down_level(source: str) -> str:
    """Rewrite one file; strings and comments stay as they are, and lines keep their numbers."""
    kept: list[str] = []

    def keep(match: re.Match[str]) -> str:
        kept.append(match[0])
        return f"\x01{len(kept) - 1}\x02"

    code = _STRING_OR_COMMENT.sub(keep, source)
    for pattern, replacement in _REWRITES:
        code = pattern.sub(replacement, code)
    while match := _USING_DECLARATION.search(code):
        end = _end_of_block(code, match.end())
        code = f"{code[: match.start()]}using ({match[1]}) {{{code[match.end() : end]}}}{code[end:]}"
    return re.sub("\x01(\\d+)\x02", lambda match: kept[int(match[1])], code)


def _end_of_block(code: str, start: int) -> int:
    """Where the brace stands that closes the block around start."""
    depth = 0
    for place in range(start, len(code)):
        depth += {"{": 1, "}": -1}.get(code[place], 0)
        if depth < 0:
            return place
    raise ValueError("a block that is not closed")


def main() -> None:
    origin, target = map(Path, sys.argv[1:])
    for path in sorted(origin.rglob("*.cs")):
        rewritten = target / path.relative_to(origin)
        rewritten.parent.mkdir(parents=True, exist_ok=True)
        rewritten.write_text(down_level(path.read_text(encoding="utf-8-sig")), encoding="utf-8")


if __name__ == "__main__":
    main()
