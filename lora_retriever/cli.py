"""The command `lora-retriever`, from its arguments to its exit status. Each command is a file of `commands`.

Exit status: 0 everything was done, 1 rows failed, 2 arguments, input or environment are unusable, 128 plus the number
of the signal that ended the command (130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP).
"""

from __future__ import annotations

import argparse
import errno
import os
import platform
import signal
import sys
import tempfile
import textwrap
import traceback
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from lora_retriever import __version__
from lora_retriever.commands import commands
from lora_retriever.commands.arguments import KnownNames
from lora_retriever.errors import RowsFailedError, StoppedError, UserError, one_line_of
from lora_retriever.escaping import for_terminal, replace_unwritable
from lora_retriever.files import DISK_ERRORS
from lora_retriever.log import LOG, SHOWN, logged

DONE, ROWS_FAILED, UNUSABLE, SIGNALLED = 0, 1, 2, 128
STATUSES = """
exit status:
  0       everything was done
  1       rows failed; all other rows are answered
  2       the arguments, the input or the environment are unusable
  128+N   signal N ended the command: 130 for Ctrl-C, 143 for SIGTERM
"""
COMPLETION = """
the shell completes commands, arguments and names after
  eval "$(register-python-argcomplete lora-retriever)"
"""
WIDTH = 100
"""Width of lists of names in a help text, in characters."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    try:
        replace_unwritable()
        with ExitStack() as log:
            status = _run(arguments, log)
        return _flushed(status)
    except KeyboardInterrupt:  # a Ctrl-C before the command begins, or after its last message
        return SIGNALLED + signal.SIGINT


def _run(arguments: Sequence[str] | None, log: ExitStack) -> int:
    """Run one command, with its log in `log`, and return its exit status. Every error becomes a message."""
    try:
        parser = build_parser()
        _complete(parser)
        args = parser.parse_args(arguments)
        console = log.enter_context(logged(args.verbose, args.quiet, args.log_file))
        given = sys.argv[1:] if arguments is None else arguments
        LOG.info("lora-retriever %s, Python %s, arguments: %s", __version__, platform.python_version(), [*given])
        status: int = args.run(args, console)
        LOG.info("exit status %d", status)
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
    return status


class CommandParser(argparse.ArgumentParser):
    """The parser of one command. Its help ends with examples, the names that arguments take, and exit statuses."""

    examples = ""

    def format_help(self) -> str:
        """The help text. The names are looked up here, because looking them up may import slow packages."""
        lines = ["examples:", *(f"  {line}" for line in self.examples.strip().splitlines()), *self._known()]
        self.epilog = "\n".join(lines) + "\n" + STATUSES
        return super().format_help()

    def _known(self) -> Iterator[str]:
        known = [action.completer for action in self._actions if hasattr(action, "completer")]
        for names in dict.fromkeys(one for one in known if isinstance(one, KnownNames)):
            with suppress(ImportError):  # a package is absent: the rest of the help is still of use
                text = textwrap.fill(", ".join(names.names()), WIDTH, initial_indent="  ", subsequent_indent="  ")
                yield f"\n{names.title}:\n{text}"


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands and their arguments."""
    parser = argparse.ArgumentParser(
        prog="lora-retriever",
        description="Retrieve, compose and evaluate LoRA adapters.",
        epilog=STATUSES + COMPLETION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"lora-retriever {__version__}")
    parser.set_defaults(verbose=False, quiet=False, log_file=None)
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=CommandParser)
    for name, command in commands().items():
        one = subparsers.add_parser(
            name,
            help=command.HELP,
            description=command.HELP,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        one.examples = command.EXAMPLES
        command.add_arguments(one)
        for part in _parts_of(one):
            _add_messages(part)
        one.set_defaults(run=command.run)
    return parser


def _parts_of(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    """The parsers of a command's parts, such as `watermark key`; or the command's own parser."""
    parts = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return [part for action in parts for part in action.choices.values()] or [parser]


def _add_messages(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that say which messages a command gives."""
    group = parser.add_argument_group("messages")
    amount = group.add_mutually_exclusive_group()
    amount.add_argument(
        "-v",
        "--verbose",
        action="store_true",
        help="show also what begins and ends, what libraries log, and tracebacks",
    )
    amount.add_argument("-q", "--quiet", action="store_true", help="show results and errors only")
    group.add_argument("--log-file", type=Path, metavar="FILE", help="append everything that -v shows to this file")


def _complete(parser: argparse.ArgumentParser) -> None:
    """Answer the shell, and end, if the shell asks for completions."""
    if "_ARGCOMPLETE" in os.environ:
        from argcomplete import autocomplete

        autocomplete(parser)


def missing_package(error: ModuleNotFoundError) -> str | None:
    """The advice for a package that is not installed. None: the missing module is a module of this project."""
    package = (error.name or "").partition(".")[0]
    if not package or package == "lora_retriever":
        return None
    return (
        f"the Python package {package!r} is not installed for {sys.executable}. In a checkout, `make .venv/installed` "
        "installs everything into .venv, and ./lora-retriever uses it; elsewhere: "
        "pip install -e peft/ -r requirements.txt -e ."
    )


def _failed(message: str, status: int) -> int:
    LOG.error("%s (exit status %d)", message, status, extra=SHOWN)
    if sys.exc_info()[0] is not None:
        LOG.info("the error came from:", exc_info=True)
    with suppress(OSError, ValueError):  # standard error may be closed or full; the exit status still tells
        print(for_terminal(f"lora-retriever: {message}"), file=sys.stderr)
    return status


def _of_the_disk(error: Exception) -> str | None:
    """The message for an error of the file system, such as a full disk, at any file. None: another error."""
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
    """The error of writing an empty line to standard output. None: the line was written."""
    try:
        print(flush=True)
    except OSError as error:
        return error
    except ValueError:  # it is closed
        pass
    return None


def _flushed(status: int) -> int:
    """Write the buffers of standard output and standard error, and return the exit status: another one if this
    fails."""
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
    """The exit status when standard output cannot be written. A closed pipe, as after `| head`, is no error."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if isinstance(error, BrokenPipeError):
        return status
    return _failed(f"standard output cannot be written ({error.strerror or error})", max(status, UNUSABLE))
