"""The tables of `docs/families.md`: what the tests said of every family and step, and what is refused and why.

    python -m pytest -m step
    python docs/support_matrix.py

The first runs the tests that speak of a family and leaves what they said in `build/support_matrix.json`; the second writes
it into the page. Where a step is missing, nothing is written.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "families.md"
RESULTS = ROOT / "build" / "support_matrix.json"
Outcomes = dict[str, dict[str, str]]
_BETWEEN = "<!-- {name}: docs/support_matrix.py -->\n{text}<!-- end of {name} -->"


def families() -> tuple[str, ...]:
    """All, in the code's order."""
    from prunella.speech_llm.families import FAMILIES

    return tuple(family.model_type for family in FAMILIES.values())


def support_table(outcomes: Outcomes, steps: tuple[str, ...]) -> str:
    """A row for every step.

    Args:
        outcomes: family → step → "yes", or "no: " and the reason.
        steps: in order.

    Raises:
        ValueError: a test failed or did not run, or a step has none.
    """
    names = families()
    for name in names:
        for step in steps:
            said = outcomes.get(name, {}).get(step, "no test ran")
            if said != "yes" and not re.fullmatch("no: .+", said):
                raise ValueError(f"{name}, {step}: {said}")
    rows = [["step", *(f"`{name}`" for name in names)], [":--"] * (len(names) + 1)]
    rows += [[step, *(outcomes[name][step].replace("|", "\\|") for name in names)] for step in steps]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def refused_table() -> str:
    """Kinds of models that are refused by name, by the reason."""
    from prunella.speech_llm.not_here import REASONS

    rows = ["| kind | is refused because it |\n", "|:--|:--|\n"]
    rows += [
        f"| {', '.join(f'`{kind}`' for kind in kinds)} | {reason} |\n" for reason, kinds in REASONS.items()
    ]
    return "".join(rows)


def between(page: str, name: str) -> str:
    """What stands in a page between the marks of a table."""
    begin, end = _BETWEEN.format(name=name, text="\0").split("\0")
    return page.split(begin)[1].split(end)[0]


def replaced(page: str, name: str, text: str) -> str:
    """The page with another table between the marks."""
    old = _BETWEEN.format(name=name, text=between(page, name))
    return page.replace(old, _BETWEEN.format(name=name, text=text))


def cells(table: str) -> Outcomes:
    """A table of `support_table` read back."""
    lines = [re.split(r"(?<!\\)\|", line)[1:-1] for line in table.strip().splitlines()]
    names = [cell.strip().strip("`") for cell in lines[0][1:]]
    found: Outcomes = {name: {} for name in names}
    for step, *row in lines[2:]:
        for name, cell in zip(names, row, strict=True):
            found[name][step.strip()] = cell.strip().replace("\\|", "|")
    return found


def main() -> int:
    sys.path.insert(0, str(ROOT / "tests"))
    from support_matrix import STEPS

    outcomes = json.loads(RESULTS.read_text(encoding="utf-8"))
    page = PAGE.read_text(encoding="utf-8")
    page = replaced(page, "support", support_table(outcomes, STEPS))
    PAGE.write_text(replaced(page, "refused", refused_table()), encoding="utf-8")
    print(PAGE)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
