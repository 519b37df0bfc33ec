"""`data generate` on the command line: the price without a key, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentforge.cli import main


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(("data", "generate", *arguments))
    out, err = capsys.readouterr()
    return code, out, err


def test_dry_run_prices_the_whole_set_without_a_key(capsys, monkeypatch) -> None:
    monkeypatch.delenv("OPENROUTER_API_KEY", raising=False)
    code, out, _ = run(capsys, "--dry-run")
    assert code == 0
    assert "25,000 examples: 5 teachers x 10 strategies x 500, at most 20 a call" in out
    assert "1,250 calls" in out
    # 1,250,000 output tokens a teacher at 15, 15, 5, 15 and .40 USD a million make 63 USD.
    assert "63." in out
    assert "25m00s at 50 calls a minute" in out


def test_dry_run_warns_when_the_limit_would_end_it_early(capsys) -> None:
    code, out, _ = run(capsys, "--dry-run", "--set", "quietstar.generator.cost_limit_usd=5")
    assert code == 0
    assert "the limit would end it early" in out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "--out is missing"),
        (("--out", "x"), "OPENROUTER_API_KEY is not set"),
        (("--out", "x", "--model-dir", "y"), "belongs to --source local"),
        (("--out", "x", "--source", "local"), "needs --model-dir"),
        (("--out", "x", "--source", "local", "--model-dir", "gone"), "neither a folder nor"),
        (("--out", "x", "--set", "quietstar.generator.per_call=30"), "per_call"),
        (("--out", "x", "--set", "quietstar.generator.key=secret"), "key"),
    ],
)
def test_mistakes_are_one_message(
    capsys, monkeypatch, tmp_path: Path, arguments: tuple[str, ...], says: str
) -> None:
    monkeypatch.delenv("OPENROUTER_API_KEY", raising=False)
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, *arguments)
    assert code == 2
    assert says in err
    assert "Traceback" not in err
    assert out == ""
    assert not (tmp_path / "x").exists()


def test_generating_needs_no_torch(capsys) -> None:
    import subprocess
    import sys

    script = (
        "import sys\nfrom agentforge.cli import main\n"
        "main(['data', 'generate', '--dry-run'])\nassert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
