"""Measure the structure of the code: ``python tools/measure_structure.py [--trace torch]``.

``--show MEASURE`` says what a measure has found. Ends with 1 if anything is above its limit
(tools/structure/limits.py).
"""

from __future__ import annotations

import argparse
import sys

from structure.limits import Measure, measures, traced_measures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trace", default="", metavar="BACKEND", help="trace an update and a step on it, too")
    parser.add_argument("--show", default="", metavar="MEASURE", help="print what the measures of that name have found")
    given = parser.parse_args()
    taken = [*measures(), *(traced_measures(given.trace) if given.trace else ())]
    if given.show:
        return _show([measure for measure in taken if given.show in measure.name], given.show)
    above = []
    print(f"{'':46}{'now':>8}{'limit':>8}{'aim':>8}")
    for measure in taken:
        found = measure.take()
        value = float(len(found)) if isinstance(found, list) else found
        aim = "" if measure.aim is None else f"{measure.aim:g}"
        print(f"{measure.name:46}{value:8.6g}{measure.limit:8.6g}{aim:>8}")
        if value > measure.limit:
            above.append(measure.name)
    for name in above:
        print(f"above its limit: {name}; python tools/measure_structure.py --show '{name}' says where")
    return 1 if above else 0


def _show(chosen: list[Measure], name: str) -> int:
    if not chosen:
        print(f"no measure is called {name!r}; there are: {', '.join(measure.name for measure in measures())}")
        return 2
    for measure in chosen:
        found = measure.take()
        print(measure.name, *(found if isinstance(found, list) else [f"{found:g}"]), sep="\n  ")
    return 0


if __name__ == "__main__":
    sys.exit(main())
