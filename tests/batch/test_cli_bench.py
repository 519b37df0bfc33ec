"""The verb ``bench``: every way to run a model is timed, as table, JSON and CSV."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from agentforge_kernels.native import extension
from click.testing import CliRunner

from agentforge.cli import cli
from agentforge.errors import RunError
from agentforge.run.layout import RunLayout, model_folder
from tests.unit.test_packed_directory import save, ternary_model

pytestmark = pytest.mark.skipif(extension is None, reason="the extension was not built")


def test_table_json_and_csv_say_the_same_variants(tmp_path: Path) -> None:
    model = save(tmp_path / "model", ternary_model())
    options = ["bench", str(model), "--threads", "1", "--context", "0", "--context", "9"]
    options += ["--context", "500", "--rounds", "1"]
    runner = CliRunner()
    path = tmp_path / "times.csv"
    done = runner.invoke(cli, [*options, "--json", "--csv", str(path)], catch_exceptions=False)
    found = json.loads(done.stdout)
    names = {"torch_fp32", "torch_bf16", "kernels", "native_bf16", "native"}
    assert {(v["name"], v["context"]) for v in found["variants"]} == {
        (n, c) for n in names for c in (0, 9)
    }
    assert all(v["low"] <= v["us_per_token"] <= v["high"] for v in found["variants"])
    assert {p["name"] for p in found["prefills"]} == names - {"native_bf16"}
    assert {p["tokens"] for p in found["prefills"]} == {40}
    native = next(v for v in found["variants"] if (v["name"], v["context"]) == ("native", 0))
    torch = next(v for v in found["variants"] if (v["name"], v["context"]) == ("torch_fp32", 0))
    ratio = torch["us_per_token"] / native["us_per_token"]
    assert found["speedup"]["torch_fp32"] == pytest.approx(ratio)
    assert found["speedup_by_threads"]["1"] == found["speedup"]
    assert set(found["speedup"]) == names - {"native"}
    assert set(found["peak_bytes"]) == names
    assert found["weight_bytes"]["native_bf16"] > found["weight_bytes"]["native"]
    # Whatever the machine: a memory layer and every matrix are touched, more of the caches later.
    short, later = (limit["bytes"] for limit in found["limits"])
    assert sum(layer["rows"] * layer["columns"] for layer in found["layers"]) / 4 < short <= later
    assert all(limit["limit_us"] > 0 for limit in found["limits"])
    pruned = next(x for x in found["layers"] if x["form"] == "block-sparse")
    assert pruned["zero_tiles"] > 0
    assert pruned["zero_share"] > 0.3
    assert all(x["us"] > 0 and x["gain"] == x["dense_us"] / x["us"] for x in found["layers"])
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert {(r["name"], int(r["context"])) for r in rows} == {(n, c) for n in names for c in (0, 9)}
    table = runner.invoke(cli, options, catch_exceptions=False).stdout
    assert "native against torch_fp32, 1 thread: " in table
    assert "block-sparse" in table


def test_no_model_is_said(tmp_path: Path) -> None:
    options = ["bench", str(tmp_path / "none"), "--run-dir", str(tmp_path)]
    with pytest.raises(RunError, match="neither a model directory nor a run: no run"):
        CliRunner().invoke(cli, options, catch_exceptions=False)


def test_a_run_stands_for_its_model(tmp_path: Path) -> None:
    layout = RunLayout(tmp_path / "runs" / "a-run")
    layout.root.mkdir(parents=True)
    (layout.root / "manifest.json").write_text("{}")
    with pytest.raises(RunError, match="no packed model"):
        model_folder("a-run", tmp_path / "runs")
    layout.packed_model.mkdir(parents=True)
    for named in ("a-run", str(layout.root), str(layout.packed_model)):
        assert model_folder(named, tmp_path / "runs") == layout.packed_model
