"""``python -m agentforge_kernels.verify``: the static report of every kernel, without a GPU.

Exit code 0: every gate and the ratchet hold; 1: one does not, or a kernel does not compile;
2: usage.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from agentforge_kernels.verify import limits
from agentforge_kernels.verify.all_cases import CASES, CASES_BY_NAME
from agentforge_kernels.verify.gates import absolute_failures
from agentforge_kernels.verify.presentation import as_json, table
from agentforge_kernels.verify.report import Reports, report_everything
from agentforge_kernels.verify.targets import TARGETS


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m agentforge_kernels.verify",
        description="Compile every kernel for every GPU it ships for and report what the machine"
        " code says.",
    )
    parser.add_argument(
        "--kernel",
        action="append",
        choices=sorted(CASES_BY_NAME),
        metavar="NAME",
        help="only this case (repeatable)",
    )
    parser.add_argument(
        "--target",
        action="append",
        choices=list(TARGETS),
        metavar="NAME",
        help=f"only this target (repeatable): {', '.join(TARGETS)}",
    )
    parser.add_argument(
        "--json", action="store_true", help="the report as JSON, all modelled shapes included"
    )
    parser.add_argument(
        "--update-limits", action="store_true", help="write the figures to limits.json"
    )
    chosen = parser.parse_args(arguments)
    names = chosen.kernel or list(CASES_BY_NAME)
    targets = [name for name in TARGETS if name in (chosen.target or TARGETS)]
    reports = report_everything(targets, names)
    if chosen.json:
        _say(json.dumps([as_json(report) for report in reports.reports], indent=1))
    else:
        _say(table(reports.reports))
    if chosen.update_limits:
        return _update(reports)
    return _judge(reports, names, targets)


def _update(reports: Reports) -> int:
    if reports.failures:
        _complain([*reports.failures, "limits.json is left as it is"])
        return 1
    try:
        new = limits.updated(_checked_in(), reports.reports, CASES)
    except ValueError as error:
        _complain([str(error)])
        return 1
    limits.write_limits(new, limits.LIMITS_FILE)
    _complain([f"{limits.LIMITS_FILE}: figures of {len(reports.reports)} entries written"])
    gates = [text for report in reports.reports for text in absolute_failures(report)]
    _complain(gates)
    return 1 if gates else 0


def _judge(reports: Reports, names: Sequence[str], targets: Sequence[str]) -> int:
    expected = [
        (name, target)
        for name in names
        for target in CASES_BY_NAME[name].targets
        if target in targets
    ]
    verdict = limits.judge(reports.reports, _checked_in(), CASES, expected)
    problems = [*reports.failures, *verdict.gates, *verdict.ratchet]
    _complain([*problems, *verdict.notes])
    return 1 if problems else 0


def _checked_in() -> limits.Limits:
    # Without the file every entry is missing, and said to be.
    return limits.read_limits(limits.LIMITS_FILE) if limits.LIMITS_FILE.exists() else {}


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")


def _complain(lines: Sequence[str]) -> None:
    sys.stderr.writelines(line + "\n" for line in lines)


if __name__ == "__main__":
    sys.exit(main())
