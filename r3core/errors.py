"""Every error that r3 raises on purpose.

R3Error
├── UsageError      the request cannot be carried out as it is (exit code 2)
│   ├── ConfigError     invalid key or value in the configuration
│   ├── TaskError       task that cannot be found, or error in a task plugin
│   └── BusyError       another process uses the same run directory
└── RunError        the request is valid, but the run failed (exit code 1)
"""

from difflib import get_close_matches


class R3Error(Exception):
    """A human-readable error: what is wrong, and hints on what to do about it."""

    exit_code = 1

    def __init__(self, message: str, *hints: str) -> None:
        super().__init__(message)
        self.message = message
        self.hints = hints

    def __str__(self) -> str:
        return "\n".join([self.message, *(f"hint: {hint}" for hint in self.hints)])


class UsageError(R3Error):
    """The request cannot be carried out as it is."""

    exit_code = 2


class ConfigError(UsageError):
    """A key or value in the configuration is invalid."""


class TaskError(UsageError):
    """A task cannot be found, or its plugin has an error."""


class BusyError(UsageError):
    """Another process uses the same run directory."""


class RunError(R3Error):
    """The request is valid, but the run failed."""


def did_you_mean(word: str, known: list[str]) -> tuple[str, ...]:
    """Return a hint with the most similar known word, or no hint when none is similar."""
    near = get_close_matches(word, known, n=1, cutoff=0.5)
    return (f"did you mean `{near[0]}`?",) if near else ()


def one_line(error: BaseException, *, first: bool = False) -> str:
    """Return an exception's message on one line, or only its `first` line; the type's name when it has no message."""
    message = str(error).strip()
    if first:
        message = message.partition("\n")[0]
    return " ".join(message.split()) or type(error).__name__
