"""Files of results: JSON that is whole after every record, and text that is written at once."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.harness.record import Key, Quartiles, Record
from gossamer import CheckpointError, GossamerError

SCHEMA = 1


def write_text(path: Path, text: str) -> None:
    """Write a file: a temporary one first, renamed at the end, so that it is never half.

    Args:
        path: the file; its folder is made if it is missing.
        text: UTF-8.

    Raises:
        GossamerError: the folder cannot be written.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise GossamerError(
            f"{path} cannot be written: {error.strerror}; choose another --out"
        ) from error


def write_json(path: Path, content: Any) -> None:
    """Write plain values as JSON, as `write_text` does.

    Args:
        path: the file.
        content: plain values.

    Raises:
        GossamerError: the folder cannot be written.
    """
    write_text(path, json.dumps(content, indent=1) + "\n")


@dataclass
class Results:
    """All records of a bench, and where and with what they were measured.

    Args:
        path: the JSON file.
        machine: facts that must stay the same for results to be comparable.
        settings: of the run, such as whether it was quick.
        commits: git commits under which records were measured, in order; empty without git.
        records: in the order in which they were measured.
        errors: what went wrong, one line each.
        complete: whether the whole plan is measured.
    """

    path: Path
    machine: dict[str, Any]
    settings: dict[str, Any]
    commits: list[str] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    complete: bool = False

    @property
    def keys(self) -> set[Key]:
        """Keys of what is measured."""
        return {record.key for record in self.records}

    def add(self, records: Iterable[Record]) -> None:
        """Append records and write the file."""
        self.records.extend(records)
        self.save()

    def save(self) -> None:
        """Write the file: a temporary one first, renamed at the end, so that it is never half.

        Raises:
            GossamerError: the folder cannot be written.
        """
        content = {"schema": SCHEMA} | {k: v for k, v in asdict(self).items() if k != "path"}
        write_json(self.path, content)

    @classmethod
    def load(cls, path: Path) -> "Results":
        """Read a file that `save` wrote.

        Args:
            path: the file.

        Returns:
            Its results.

        Raises:
            CheckpointError: it is missing, damaged, or of another version.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["schema"] != SCHEMA:
                raise CheckpointError(
                    f"{path} has schema {content['schema']}, this version reads {SCHEMA}; "
                    "measure anew without --resume"
                )
            return cls(
                path,
                content["machine"],
                content["settings"],
                content["commits"],
                [_record(entry) for entry in content["records"]],
                content["errors"],
                content["complete"],
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(
                f"{path} holds no bench results ({type(error).__name__}: {error}); "
                "measure anew without --resume"
            ) from error


def _record(entry: dict[str, Any]) -> Record:
    quartiles = {
        name: {who: Quartiles(**values) for who, values in entry[name].items()}
        for name in ("measured", "ratios")
    }
    return Record(**entry | quartiles)
