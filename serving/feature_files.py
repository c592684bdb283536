"""Tables of features by id, which may be exchanged while they are served.

A table's folder, `STEP-VERSION.features` beside the program that asks it, holds a folder for each of its versions, and
a file CURRENT that names one of them. A version is a compiled program from ids to features, memory-mapped, and
`features.json` with what it holds. Whoever writes one writes it aside, renames it, and then exchanges CURRENT by a
rename; a server looks at CURRENT with every request, opens another version beside the one that it has, and changes
over between two requests.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from tristage.errors import RepositoryError
from tristage.manifest import feature_tables, sha256

__all__ = ["ABOUT", "CURRENT", "About", "check_tables", "current"]

CURRENT = "CURRENT"
ABOUT = "features.json"


@dataclass(frozen=True)
class About:
    """What a version of a table holds.

    Attributes:
        ids: what the table calls its ids.
        dtype: the ids' type, as a request sends them.
        columns: feature -> its NumPy type.
        rows: ids.
        files: file of the version, relative to its folder -> its SHA-256 in hexadecimal.
    """

    ids: str
    dtype: str
    columns: Mapping[str, str]
    rows: int
    files: Mapping[str, str]

    @classmethod
    def read(cls, folder: Path) -> About:
        """What the folder of a version says of itself.

        Raises:
            RepositoryError: it says nothing that can be read.
        """
        path = folder / ABOUT
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise RepositoryError(f"{path} cannot be read ({error}); write the table again") from error

    def to_json(self) -> str:
        """As `read` reads it; the same version gives the same bytes."""
        return json.dumps(asdict(self), indent=1) + "\n"


def current(tables: Path) -> Path:
    """The folder of the version that is served.

    Raises:
        RepositoryError: CURRENT is missing, or names no version.
    """
    path = tables / CURRENT
    try:
        name = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise RepositoryError(f"{path} cannot be read ({error}); export the stack again") from error
    version = tables / name
    if not name or version.parent != tables or not version.is_dir():
        raise RepositoryError(f"{path} names the version {name!r}, which is not there; export the stack again")
    return version


def check_tables(repository: Path) -> None:
    """Check that the versions of a repository's tables that are served are what was written.

    Raises:
        RepositoryError: names the file that is missing or changed.
    """
    for tables in feature_tables(repository):
        version = current(tables)
        for name, digest in About.read(version).files.items():
            path = version / name
            if not path.is_file() or sha256(path) != digest:
                raise RepositoryError(f"{path} is missing, or changed since it was written; write the table again")
