"""Expected failures. Each carries one clear line: what is wrong, where, what was expected, what to do."""

from nextscale.runtime._text import printable


class NextscaleError(Exception):
    """An expected failure; the command line prints it as one line and exits with code 2.

    As text it has escapes for control characters, which a file's name may have, but for the ends of lines.
    """

    def __str__(self) -> str:
        return "\n".join(map(printable, super().__str__().split("\n")))


class BundleError(NextscaleError):
    """A bundle that is missing, damaged, newer than this program, or not what its manifest says."""


class ClassLabelError(NextscaleError):
    """A class that the bundle's model does not have."""


class RequestError(NextscaleError):
    """A generation parameter outside its range."""


class UnreadableError(NextscaleError):
    """A file that is there and cannot be read, whatever is in it: no permission, a folder, no memory for it."""


class OutputError(NextscaleError):
    """A file that cannot be written."""


class Cancelled(NextscaleError):
    """The caller cancelled a generation; nothing is wrong and nothing was produced."""
