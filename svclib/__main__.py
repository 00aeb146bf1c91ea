"""The ``svclib`` command: the same calls as the notebooks. ``svclib COMMAND --help`` explains each.

Exit status: 0 on success; 2 on a mistake in the arguments or files, with one or two sentences on stderr that name the
file and the remedy; 130 after Ctrl-C; 1 for a fault of the program. ``--debug`` shows the traceback of any of them.
"""

import os
import sys
import traceback

if __name__ == "__main__" and os.path.abspath(sys.path[0]) == os.getcwd():
    del sys.path[0]  # of `python -m`: a folder of recordings may hold modules of any name

from svclib.cli import arguments, commands
from svclib.cli.terminal import log


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit status, see the module's first lines."""
    argv = sys.argv[1:] if argv is None else argv
    os.environ["PYTHONSAFEPATH"] = "1"  # no process that is started imports from the working folder
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a file name that the terminal cannot show is no reason to stop
    try:
        given = arguments.parser(next((x for x in argv if not x.startswith("-")), "")).parse_args(argv)
    except SystemExit as leave:
        return int(leave.code or 0)
    try:
        return arguments.COMMANDS[given.command].run(given) or 0
    except KeyboardInterrupt:
        if given.debug:
            traceback.print_exc()
        log("\nInterrupted. What was finished is kept; the same command goes on from there.")
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    except Exception as error:
        if given.debug:
            traceback.print_exc()
        message = commands.user_message(error)
        if message:
            log(message)
            return 2
        first = (str(error).strip().splitlines() or [""])[0]
        log(
            f"svclib failed ({type(error).__name__}: {first}). This is a fault of the program, not yours; "
            "please report it with what the same command prints with --debug."
        )
        return 1


if __name__ == "__main__":
    sys.exit(main())
