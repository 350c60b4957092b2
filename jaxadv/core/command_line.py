"""The command that started this program."""

import shlex
import sys
from pathlib import Path


def command_line() -> str:
    """Return the command of this program, to be repeated in a shell."""
    program, *arguments = sys.argv
    if Path(program).name == "jaxadv":  # the installed command
        return shlex.join(["jaxadv", *arguments])
    return shlex.join(["python", *sys.argv])
