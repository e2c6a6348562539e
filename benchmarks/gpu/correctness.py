"""Run the tests marked ``cuda`` and write their outcomes.

python benchmarks/gpu/correctness.py --out FILE [--tiny]
"""

import sys
from collections import Counter
from pathlib import Path

import pytest
from results import Results, read_options

TESTS = Path(__file__).parents[2] / "tests"


class Outcomes:
    """A pytest plugin that writes every outcome as soon as it is known."""

    def __init__(self, results: Results):
        self._results = results
        self.counts: Counter[str] = Counter()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        outcome = report.outcome
        if outcome == "passed" and report.when != "call":
            return
        self.counts[outcome] += 1
        passed = outcome == "passed"
        self._results.add(f"{report.nodeid} ({report.when})", _described(report), counts=int(passed))


def _described(report: pytest.TestReport) -> str:
    if report.outcome == "passed":
        return f"passed in {report.duration:.1f} s"
    return f"{report.outcome}: {str(report.longrepr)[-600:]}"


def main() -> int:
    options = read_options(__doc__)
    outcomes = Outcomes(Results(options.out))
    processes = ["-n", "2", "--rehearse-cuda"] if options.tiny else ["-n", "8"]
    # The files by name, because collecting all tests takes long.
    files = [str(path) for path in sorted(TESTS.rglob("test_*.py")) if "mark.cuda" in path.read_text()]
    arguments = ["-q", "-m", "cuda", "-p", "no:cacheprovider", *processes, "--rootdir", str(TESTS.parent), *files]
    code = pytest.main(arguments, plugins=[outcomes])
    return int(code) or int(not outcomes.counts["passed"])


if __name__ == "__main__":
    sys.exit(main())
