"""The part of the wandb package that the sink uses, in memory."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any


@dataclass
class FakeRun:
    settings: dict[str, Any]
    logged: list[dict[str, Any]] = field(default_factory=list)
    artifacts: list[FakeArtifact] = field(default_factory=list)
    exit_code: int | None = None
    axis: str = ""

    def define_metric(self, name: str, step_metric: str | None = None) -> None:
        self.axis = step_metric or self.axis

    def log(self, values: dict[str, Any]) -> None:
        assert self.exit_code is None, "logged after finish"
        self.logged.append(values)

    def log_artifact(self, artifact: FakeArtifact) -> None:
        self.artifacts.append(artifact)

    def finish(self, exit_code: int) -> None:
        self.exit_code = exit_code

    def last(self, name: str) -> Any:
        return next(row[name] for row in reversed(self.logged) if name in row)


@dataclass
class FakeTable:
    columns: list[str]
    data: list[list[Any]]


@dataclass
class FakeArtifact:
    name: str
    type: str
    files: list[str] = field(default_factory=list)

    def add_file(self, path: str, **_: Any) -> None:
        assert Path(path).is_file()
        self.files.append(path)


class FakeWandb:
    """The part of the wandb package the sink uses."""

    Table = FakeTable
    Artifact = FakeArtifact

    def __init__(self) -> None:
        self.runs: dict[str, FakeRun] = {}
        self.plot = SimpleNamespace(line=self._plot, bar=self._plot, line_series=self._line_series)

    @staticmethod
    def Settings(**values: Any) -> dict[str, Any]:  # noqa: N802 - wandb's name
        return values

    @staticmethod
    def _line_series(**values: Any) -> dict[str, Any]:
        assert len(values["ys"]) == len(values["keys"])
        assert all(len(y) == len(values["xs"]) for y in values["ys"])
        return values

    @staticmethod
    def _plot(table: FakeTable, x: str, y: str, title: str) -> tuple[FakeTable, str, str]:
        assert x in table.columns
        assert y in table.columns
        return table, x, y

    def init(self, **settings: Any) -> FakeRun:
        assert settings["name"] not in self.runs, "a run was opened twice"
        self.runs[settings["name"]] = FakeRun(settings)
        return self.runs[settings["name"]]
