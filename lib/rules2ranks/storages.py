"""Storages of Optuna's (MIT) that workers share: a database, or a journal whose writers may be killed."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from filelock import FileLock
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from sqlalchemy.exc import IntegrityError, ProgrammingError

#: How often tables are asked for that another worker makes at the same moment.
TRIES = 10


def connect(place: str | Path) -> BaseStorage:
    """The storage at an address such as "postgresql://user@host/name", or in a file, made where it is not there.

    A file is a journal, on a disk that all workers see; `<file>.lock` beside it is its lock. As in `runs` it is held by
    `flock`, and so ends with its process: Optuna's own are files, which a killed worker leaves to the others to break.

    Raises:
        ImportError: no driver for this database is installed.
        Whatever the database or the disk raises.
    """
    if "://" in str(place):
        return _database(str(place))
    path = Path(place).expanduser().resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    return JournalStorage(_Journal(path))


def _database(address: str) -> RDBStorage:
    for left in range(TRIES - 1, -1, -1):
        try:
            return RDBStorage(address, engine_kwargs={"pool_pre_ping": True})  # it may go away and come back
        except (IntegrityError, ProgrammingError):  # PostgreSQL lets one worker alone make the tables
            if not left:
                raise
            time.sleep(0.5)
    raise AssertionError


class _Journal(JournalFileBackend):
    def __init__(self, path: Path) -> None:
        self._path, self._only_one = path, FileLock(f"{path}.lock")
        super().__init__(str(path), self._only_one)  # which can do what Optuna asks of a lock

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        with self._only_one:  # it may be taken again within
            self._cut_torn_end()
            super().append_logs(logs)

    def _cut_torn_end(self) -> None:
        """A killed writer, or a full disk, may leave the beginning of a line: the next line would be read with it."""
        with self._path.open("rb+") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(size - 1, 0))
            if file.read(1) not in (b"", b"\n"):
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
