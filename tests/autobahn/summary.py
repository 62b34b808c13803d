"""Counts the verdicts of a run of the Autobahn test suite and tells whether it passed.

Usage: summary.py REPORT_FOLDER SUMMARY_FILE
"""

import json
import re
import sys
from collections import Counter
from pathlib import Path

SECTIONS = {
    1: "Framing",
    2: "Pings and pongs",
    3: "Reserved bits",
    4: "Opcodes",
    5: "Fragmentation",
    6: "UTF-8",
    7: "Closing handshake",
    9: "Limits and speed",
    10: "Automatic fragmentation",
    12: "Compression",
    13: "Compression, parameters",
}

# From best to worst, as the suite words them; the first three pass.
VERDICTS = [
    "OK",
    "INFORMATIONAL",
    "NON-STRICT",
    "UNIMPLEMENTED",
    "UNCLEAN",
    "WRONG CODE",
    "FAILED BY CLIENT",
    "FAILED",
]
PASSES = VERDICTS[:3]

# The folders of reports, one for each route.
PARTS = ["plain", "compressed"]

# What the suite of requirements.txt holds; fewer mean that the server went away.
CASES_EXPECTED = 517


def main(report, summary):
    cases = {case: entry for part in PARTS for case, entry in read(report / part).items()}
    verdicts = {case: verdict(entry) for case, entry in sorted(cases.items(), key=by_number)}
    failures = [case for case, given in verdicts.items() if given not in PASSES]
    notable = [case for case, given in verdicts.items() if given != "OK"]

    lines = [
        "# Autobahn test suite",
        "",
        "Written by `tests/autobahn/run`: the cases of sections 1 to 10 against the route `/echo` of",
        "`gridcast.toml`, those of sections 12 and 13, which are on compression, against `/echo-compressed`,",
        "with the suite that `requirements.txt` names. A case counts with the worse of its two verdicts,",
        "that on its messages and that on its close.",
        "",
        *counts_table(verdicts),
    ]
    if notable:
        lines += ["", "## Cases other than OK", "", *notable_table(notable, verdicts, cases)]
    summary.write_text("\n".join(lines) + "\n")

    print(f"autobahn: {len(verdicts)} cases, {len(failures)} failed, see {summary}")
    for case in failures:
        print(f"  {case}: {verdicts[case]}")
    if len(verdicts) != CASES_EXPECTED:
        sys.exit(f"autobahn: {CASES_EXPECTED} cases should have run")
    if failures:
        sys.exit(1)


def read(part):
    cases = json.loads((part / "index.json").read_text())["gridcast"]
    return {case: {**entry, "reportfile": part / entry["reportfile"]} for case, entry in cases.items()}


def verdict(entry):
    return max(entry["behavior"], entry["behaviorClose"], key=VERDICTS.index)


def by_number(item):
    case, _ = item
    return [int(part) for part in case.split(".")]


def counts_table(verdicts):
    sections = Counter((int(case.split(".")[0]), given) for case, given in verdicts.items())
    shown = {*PASSES, "FAILED", *verdicts.values()}
    columns = [given for given in VERDICTS if given in shown]
    rows = [
        [f"{number} {title}", *(sections[number, given] for given in columns)]
        for number, title in SECTIONS.items()
    ]
    totals = Counter(verdicts.values())
    rows.append(["**all**", *(totals[given] for given in columns)])
    return table(["section", *columns], rows)


def notable_table(notable, verdicts, cases):
    rows = []
    for case in notable:
        details = json.loads(cases[case]["reportfile"].read_text())
        outcome = f"{details['result']} {details['resultClose']}, code {details['remoteCloseCode']}"
        rows.append([case, verdicts[case], plain(details["description"]), plain(outcome)])
    return table(["case", "verdict", "what it does", "what came of it"], rows)


def plain(text):
    """Takes the suite's HTML tags and line breaks out, and what would end a cell of a table."""
    return " ".join(re.sub(r"<[^>]*>|\|", " ", text).split())


def table(head, rows):
    return [f"| {' | '.join(map(str, row))} |" for row in [head, ["---"] * len(head), *rows]]


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
