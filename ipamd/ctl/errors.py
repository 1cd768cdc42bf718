"""How a command ends that does not succeed: in words, and with the exit code that a script looks at."""

DONE, REFUSED, USAGE, UNREACHABLE = 0, 1, 2, 3


class CommandError(Exception):
    """The command was refused; the text says "cannot <verb> <object>: <cause>; <what to do>"."""

    code = REFUSED


class UnreachableError(CommandError):
    """The daemon or the store cannot be reached; what a change that was under way did is not known."""

    code = UNREACHABLE


class DamagedError(CommandError):
    """A record is not what its key says; nobody's addresses come from it."""


class UsageError(CommandError):
    """The command line, or a file that it names, cannot be understood."""

    code = USAGE
