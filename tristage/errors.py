"""The one tree of errors tristage raises.

::

    TristageError
    ├── StackError            the stack is wrong: a cycle, an unknown column, two steps of one name
    ├── ArtifactError         a trained artifact cannot be read or cannot be converted
    ├── ExportError           the model repository could not be written
    ├── RepositoryError       a model repository is corrupt, incomplete or of another version
    ├── InputError            rows do not fit the stack's columns
    ├── ServerError           the server could not be started, reached or understood
    │   ├── PortInUse         a port is already taken
    │   ├── ServerUnavailable nothing answers, or what answered went away
    │   │   └── AnswerTooLate it took longer than it was given
    │   └── InferenceFailed   the server refused or failed the request
    └── ParityError           served answers differ from the training libraries' answers

Every message names the thing it is about and says what to do next. `exit_code` is what the command line ends with:
1 when the answer is no (parity), 2 when what the user gave is wrong, 3 when a server is the trouble.
"""

from __future__ import annotations

from pathlib import Path

__all__ = [
    "AnswerTooLate",
    "ArtifactError",
    "ExportError",
    "InferenceFailed",
    "InputError",
    "ParityError",
    "PortInUse",
    "RepositoryError",
    "ServerError",
    "ServerUnavailable",
    "StackError",
    "TristageError",
]


class TristageError(Exception):
    """Base of every error that tristage raises on purpose."""

    exit_code = 2


class StackError(TristageError):
    """The stack is wrong. `step` is the step at fault, where one is."""

    def __init__(self, message: str, *, step: str | None = None) -> None:
        super().__init__(message)
        self.step = step


class ArtifactError(TristageError):
    """A trained artifact cannot be read or converted. `path` is where it lies, where it lies in a file."""

    def __init__(self, message: str, *, path: Path | None = None) -> None:
        super().__init__(message)
        self.path = path


class ExportError(TristageError):
    """The model repository could not be written; what was there before is untouched."""


class RepositoryError(TristageError):
    """A model repository is corrupt, incomplete or was written for another version."""


class InputError(TristageError):
    """Rows do not fit the stack's columns. `column` and `row` (0-based) say where, where that is known."""

    def __init__(self, message: str, *, column: str | None = None, row: int | None = None) -> None:
        super().__init__(message)
        self.column = column
        self.row = row


class ServerError(TristageError):
    """The server could not be started, reached or understood."""

    exit_code = 3


class PortInUse(ServerError):
    """A port is already taken. `port` is its number."""

    def __init__(self, message: str, *, port: int) -> None:
        super().__init__(message)
        self.port = port


class ServerUnavailable(ServerError):
    """Nothing answers at `url`, or what answered went away."""

    def __init__(self, message: str, *, url: str) -> None:
        super().__init__(message)
        self.url = url


class AnswerTooLate(ServerUnavailable):
    """The server at `url` took longer to answer than it was given."""


class InferenceFailed(ServerError):
    """The server refused or failed a request. `status` is Triton's own word for it."""

    def __init__(self, message: str, *, status: str | None = None) -> None:
        super().__init__(message)
        self.status = status


class ParityError(TristageError):
    """Served answers differ from the training libraries' answers by more than the tolerance."""

    exit_code = 1
