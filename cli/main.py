"""The `nextscale` command: finds the subcommand, and turns every expected failure into one line and an exit code.

Exit codes: 0 done; 1 a check failed; 2 bad usage or input; 130 interrupted.
"""

import io
import os
import sys
from collections.abc import Sequence

import click

from nextscale import __version__
from nextscale.cli.lazy_group import LazyGroup
from nextscale.runtime._errors import NextscaleError
from nextscale.runtime._text import printable

# name -> what it does. Each is the click command of the same name, - read as _, in the module of that name, imported
# only when it runs, so that an install without torch has all those that need none.
COMMANDS = {
    "demo": "Build, verify, measure and draw with the demo models.",
    "build": "Turn a checkpoint, a preset or a demo model into a bundle.",
    "recipes": "List the recipes: the ways of quantizing.",
    "calibrate": "Sample token maps with a full-precision bundle, for calibration.",
    "quantize": "Make any ONNX model integer, and say what became of each operator.",
    "reconstruct": "Learn how a recipe rounds a model's weights.",
    "generate": "Make pictures from a bundle.",
    "edit": "Make parts of a photograph anew.",
    "evaluate": "Compare bundles with full precision, token for token.",
    "metrics": "Compare sets of pictures: FID-E and IS-E.",
    "theta": "Choose which tokens get more precision, within a budget of operations.",
    "bench": "Measure speed and memory of bundles, in turns.",
    "table-c": "The same as `nextscale paper table-c`.",
    "paper": "Measure the paper's tables on this machine.",
    "report": "Put bundles and results into one HTML page.",
    "inspect": "Show what is in a bundle.",
    "verify": "Check a bundle's files, contract and tokens.",
}
ENTRIES = {name: (name.replace("-", "_"), name.replace("-", "_"), does) for name, does in COMMANDS.items()}
LONGEST_MESSAGE = 2000  # what names a file may have, but not what a damaged one may say
TORCH_OUT_OF_MEMORY = "DefaultCPUAllocator"  # what torch's RuntimeError names when memory is short
EXPORT_MODULES = ("torch", "onnx", "onnxscript", "onnx_ir", "safetensors")  # of the extra `export`


@click.group(
    cls=LazyGroup,
    entries=ENTRIES,
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=False,
    invoke_without_command=True,
)
@click.version_option(__version__, prog_name="nextscale")
@click.pass_context
def cli(context: click.Context) -> None:
    """Pictures from VAR (next-scale prediction) models on a plain CPU: build int8 ONNX bundles and run them."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help(), err=True)
        context.exit(2)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; nothing but a bug ends in a traceback."""
    _escape_what_the_console_lacks()
    try:
        code = cli.main(
            args=None if arguments is None else list(arguments), prog_name="nextscale", standalone_mode=False
        )
        if sys.stdout is not None:
            sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except (click.Abort, KeyboardInterrupt):
        return _fail("interrupted; nothing half-written was left", 130)
    except click.ClickException as error:
        context = error.ctx if isinstance(error, click.UsageError) else None
        hint = f" (see `{context.command_path} --help`)" if context else ""
        return _fail(f"{error.format_message().rstrip('.')}{hint}", 2)
    except NextscaleError as error:
        return _fail(str(error), 2)
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if module not in EXPORT_MODULES:
            raise
        return _fail(f'this command needs {module}, which is not installed: pip install "nextscale[export]"', 2)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and TORCH_OUT_OF_MEMORY not in str(error):
            raise
        return _fail("out of memory; a smaller model or fewer images at a time (--batch) need less", 2)
    except BrokenPipeError:
        _abandon_stdout()
        return 1
    except OSError as error:
        _abandon_stdout()
        return _fail(f"{error.filename or 'output'}: {error.strerror}", 2)


def _escape_what_the_console_lacks() -> None:
    """Whoever prints, rich and click included: a character that the console's encoding lacks becomes its escape."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _abandon_stdout() -> None:
    """Drop what is still buffered for stdout, or it would fail once more when Python exits."""
    if sys.stdout is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(message: str, code: int) -> int:
    line = " ".join(message.split())
    if sys.stderr is not None:  # print would take stdout
        print(f"error: {printable(line[:LONGEST_MESSAGE])}", file=sys.stderr)
    return code
