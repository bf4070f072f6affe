"""Every error that r3 raises on purpose.

R3Error
├── UsageError      what the user asked for cannot be done (exit code 2)
│   ├── ConfigError     a key or a value of the configuration
│   ├── TaskError       a task that cannot be found or is written wrongly
│   └── BusyError       another process works on the same run directory
└── RunError        the request was fine, the run failed (exit code 1)
"""

from difflib import get_close_matches


class R3Error(Exception):
    """An error for people: what is wrong, and on `hint` lines what to do about it."""

    exit_code = 1

    def __init__(self, message: str, *hints: str) -> None:
        super().__init__(message)
        self.message = message
        self.hints = hints

    def __str__(self) -> str:
        return "\n".join([self.message, *(f"hint: {hint}" for hint in self.hints)])


class UsageError(R3Error):
    """What the user asked for cannot be done."""

    exit_code = 2


class ConfigError(UsageError):
    """A key or a value of the configuration is not allowed."""


class TaskError(UsageError):
    """A task cannot be found, or its author made a mistake."""


class BusyError(UsageError):
    """Another process works on the same run directory."""


class RunError(R3Error):
    """The request was fine, but the run could not be brought to its end."""


def did_you_mean(word: str, known: list[str]) -> tuple[str, ...]:
    """Return a hint that names the nearest known word, or nothing when none is near."""
    near = get_close_matches(word, known, n=1, cutoff=0.5)
    return (f"did you mean `{near[0]}`?",) if near else ()


def one_line(error: BaseException, *, first: bool = False) -> str:
    """Return an exception's message on one line, or only its `first` line; the type's name when it has no message."""
    message = str(error).strip()
    if first:
        message = message.partition("\n")[0]
    return " ".join(message.split()) or type(error).__name__
