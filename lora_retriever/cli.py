"""The command `lora-retriever`, from its arguments to its exit status. Each command is a file of `commands`.

Exit status: 0 everything was done, 1 rows failed, 2 arguments, input or environment are unusable, 128 plus the number
of the signal that ended the command (130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP).
"""

from __future__ import annotations

import argparse
import errno
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Sequence
from contextlib import suppress

from rich.console import Console

from lora_retriever import __version__
from lora_retriever.commands import commands
from lora_retriever.errors import RowsFailedError, StoppedError, UserError, one_line_of
from lora_retriever.escaping import for_terminal, replace_unwritable
from lora_retriever.files import DISK_ERRORS
from lora_retriever.progress import tolerant

DONE, ROWS_FAILED, UNUSABLE, SIGNALLED = 0, 1, 2, 128


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    replace_unwritable()
    try:
        args = build_parser().parse_args(arguments)
        status: int = args.run(args, Console(file=tolerant(sys.stderr)))
    except RowsFailedError as error:
        status = _failed(str(error), ROWS_FAILED)
    except UserError as error:
        status = _failed(str(error), UNUSABLE)
    except KeyboardInterrupt as error:
        number = error.signal if isinstance(error, StoppedError) else int(signal.SIGINT)
        name = "" if number == signal.SIGINT else f" by {signal.Signals(number).name}"
        status = _failed(
            f"stopped{name}; what is done so far is on disk, and the same command goes on", SIGNALLED + number
        )
    except ModuleNotFoundError as error:
        status = _failed(missing_package(error) or _unforeseen(error), UNUSABLE)
    except MemoryError:
        status = _failed("out of memory; lower generation.batch_size, or close other programs", UNUSABLE)
    except Exception as error:  # the last resort: a person gets one line, and the traceback is kept
        output_error = _output_error() if isinstance(error, OSError) and error.filename is None else None
        if output_error is not None:
            return _without_output(output_error, DONE)
        status = _failed(_of_the_disk(error) or _unforeseen(error), UNUSABLE)
    return _flushed(status)


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands and their arguments."""
    parser = argparse.ArgumentParser(prog="lora-retriever", description="Retrieve, compose and evaluate LoRA adapters.")
    parser.add_argument("--version", action="version", version=f"lora-retriever {__version__}")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, command in commands().items():
        one = subparsers.add_parser(name, help=command.HELP, description=command.HELP)
        command.add_arguments(one)
        one.set_defaults(run=command.run)
    return parser


def missing_package(error: ModuleNotFoundError) -> str | None:
    """The advice for a package that is not installed. None: the missing module is one of this project's."""
    package = (error.name or "").partition(".")[0]
    if not package or package == "lora_retriever":
        return None
    return (
        f"the Python package {package!r} is not installed for {sys.executable}. In a checkout, `make .venv/installed` "
        "installs everything into .venv, and ./lora-retriever uses it; elsewhere: "
        "pip install -e peft/ -r requirements.txt -e ."
    )


def _failed(message: str, status: int) -> int:
    with suppress(OSError, ValueError):  # standard error may be closed or full; the exit status still tells
        print(for_terminal(f"lora-retriever: {message}"), file=sys.stderr)
    return status


def _of_the_disk(error: Exception) -> str | None:
    """The message for an error by which a file system says that it fails, whichever file it concerns. None: another."""
    if not isinstance(error, OSError) or error.filename is None:
        return None
    known = {errno.EACCES: "no permission", errno.EPERM: "no permission", **DISK_ERRORS}
    reason = known.get(error.errno or 0)
    if reason is None:
        return None
    reason = reason.format("the file")
    return f"{error.filename}: {reason} ({error.strerror}); set that right and give the same command again"


def _unforeseen(error: Exception) -> str:
    """An unexpected error in one line, with the file that has the traceback."""
    text = for_terminal("".join(traceback.format_exception(error)))
    try:
        descriptor, path = tempfile.mkstemp(prefix="lora-retriever-error-", suffix=".log")
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="replace") as log:
            log.write(text)
    except OSError:
        return f"unexpected error: {one_line_of(error)} (there is no room for a log with the traceback)"
    return f"unexpected error: {one_line_of(error)}; the traceback is in {path}, please report it"


def _output_error() -> OSError | None:
    """Why standard output takes nothing more. None: it takes an empty line."""
    try:
        print(flush=True)
    except OSError as error:
        return error
    except ValueError:  # it is closed
        pass
    return None


def _flushed(status: int) -> int:
    """Write what is left in the buffers of standard output and error, and return the status that this gives."""
    try:
        sys.stderr.flush()
    except OSError:  # Python would try again at its end, and end with status 120
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
    except ValueError:  # it is closed
        pass
    try:
        sys.stdout.flush()
    except OSError as error:
        return _without_output(error, status)
    except ValueError:  # it is closed
        pass
    return status


def _without_output(error: OSError, status: int) -> int:
    """The status when standard output takes nothing more. `| head` has read enough, which is no error."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if isinstance(error, BrokenPipeError):
        return status
    return _failed(f"standard output cannot be written ({error.strerror or error})", max(status, UNUSABLE))
