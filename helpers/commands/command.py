"""What every command has: two flags, one line for errors, exit codes, one JSON object."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass
from typing import Any, ClassVar

from ..machine import Stopped, needed, processes

try:
    tyro = needed("tyro", "read the command line")
except (ValueError, RuntimeError) as missing:
    raise SystemExit(str(missing)) from missing

STOPPED_SO = "Stopped. What is done is kept: the same command goes on."
DONE, FAILED, WRONG_USAGE, STOPPED = 0, 1, 2, 130
TOLD = (OSError, ValueError, RuntimeError, ArithmeticError, ImportError)  # what users can cause


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command: fields are its flags, their comments the help."""

    published: ClassVar[dict[str, str]] = {}  # a flag as other projects call it → ours
    together: ClassVar[bool] = False  # whether launched processes share it; else the first does it

    json: tyro.conf.FlagCreatePairsOff[bool] = False  # print one JSON object, and nothing else
    debug: tyro.conf.FlagCreatePairsOff[bool] = False  # show where an error came from

    @classmethod
    def parse(cls, arguments: list[str], prog: str, default: Any = None) -> Command:
        """Build it from a command line; SystemExit with 2 says what is wrong in it."""
        known = ", ".join(f"--{theirs} is --{ours}" for theirs, ours in cls.published.items())
        text = inspect.cleandoc(cls.__doc__) + (f"\nPublished names: {known}." if known else "")
        with refusing(prog):
            return tyro.cli(cls, args=translated(arguments, cls.published), prog=prog,
                            description=text, use_underscores=True,
                            **({} if default is None else {"default": default}))

    def run(self) -> dict[str, Any]:
        """Do it.

        Returns:
            What JSON says of it; `failed` above 0 makes the exit code 1.
        """
        raise NotImplementedError

    def carry_out(self, prog: str) -> int:
        """Run it and return the exit code: 0 good, 1 something failed, 130 stopped."""
        out, first = sys.stdout, True
        try:
            if not (first := processes().first) and not self.together:
                return DONE
            with redirect_stdout(sys.stderr) if self.json and first else nullcontext():
                found = self.run()
            code = FAILED if found.get("failed") else DONE
        except KeyboardInterrupt as stop:
            text = str(stop) if isinstance(stop, Stopped) else STOPPED_SO
            found, code = {"error": text}, STOPPED
        except TOLD as error:
            if self.debug:
                raise
            found, code = {"error": str(error) or type(error).__name__}, FAILED
        if "error" in found and (first or code == FAILED):
            print(f"{prog}: {'error: ' if code == FAILED else ''}{found['error']}", file=sys.stderr)
        if self.json and first:
            print(json.dumps({"exit_code": code} | found, default=str), file=out)
        return code


@contextmanager
def refusing(prog: str) -> Iterator[None]:
    """Turn the error of a field's value into that of wrong usage."""
    try:
        yield
    except ValueError as error:
        print(f"{prog}: error: {error}", file=sys.stderr)
        raise SystemExit(WRONG_USAGE) from error


def translated(arguments: list[str], published: dict[str, str]) -> list[str]:
    """The same with published flags by our names, `-` or `_` between words."""
    ours = []
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        name = flag.removeprefix("--").replace("-", "_")
        known = flag.startswith("--") and name in published
        ours.append(f"--{published[name]}{equals}{value}" if known else argument)
    return ours
