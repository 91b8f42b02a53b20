"""Print what the tests of `test` took, and what they skipped and why.

Each suite leaves a JUnit file in build/test-results.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

RESULTS = Path(__file__).resolve().parent.parent / "build/test-results"


def reason(case: ElementTree.Element) -> str | None:
    """Return why a test was skipped, or None if it ran."""
    skipped = case.find("skipped")
    if skipped is None:
        return None
    text = skipped.get("message", "")
    if text == "SKIP_REGULAR_EXPRESSION_MATCHED":  # ctest: see the output
        output = case.findtext("system-out", "")
        found = re.search(r"skipped: (.*)|: Skipped\n(.*)", output)
        text = (found[1] or found[2]) if found else output
    # What pytest says of parameters that there are none of.
    return re.sub(r" \(\d+ cases\)$", "", " ".join(text.split()))


def main() -> int:
    print(f"{'suite':12} {'passed':>7} {'skipped':>8} {'seconds':>8}")
    why: Counter[tuple[str, str]] = Counter()
    for file in sorted(RESULTS.glob("*.xml")):
        cases = list(ElementTree.parse(file).iter("testcase"))
        skipped = [text for text in map(reason, cases) if text is not None]
        why.update((file.stem, text) for text in skipped)
        seconds = sum(float(case.get("time", 0)) for case in cases)
        passed = len(cases) - len(skipped)
        print(f"{file.stem:12} {passed:7} {len(skipped):8} {seconds:8.0f}")
    print("\nskipped, and why:" if why else "\nnothing was skipped")
    for (suite, text), count in sorted(why.items()):
        print(f"{suite:12} {count:5} x {text}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
