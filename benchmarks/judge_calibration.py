"""What the judges that come with affetto hear in people's recordings: recall per class, word errors, quality.

    OMP_NUM_THREADS=1 python benchmarks/judge_calibration.py RECORDINGS [--judge KIND=ID_OR_FOLDER …]

RECORDINGS is what `affetto evaluate --calibrate-judges` takes. Prints its table and writes
`benchmarks/results/judge_calibration.json`, without the files' rows. DNSMOS hears clips of three or four seconds in
several windows each and takes most of the time: `--judge quality=none` leaves it out.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from facts import run_facts
from rich.console import Console

from affetto.commands.options import pairs_of
from affetto.evaluate.judge_calibration import calibrate_judges
from affetto.evaluate.judge_calibration_table import calibration_table, said
from affetto.files import write_json
from affetto.judges.choice import all_judges

RESULT = Path(__file__).parent / "results" / "judge_calibration.json"


def main() -> None:
    """Calibrate, print and write the figures."""
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    judges = all_judges(pairs_of([value for value in sys.argv[2:] if value != "--judge"], "--judge") or {})
    document = calibrate_judges(Path(sys.argv[1]), judges)
    Console(width=120).print(calibration_table(document))
    print("\n".join(said(document)))
    facts = run_facts()
    facts["command"] = shlex.join(["python", "benchmarks/judge_calibration.py", "RECORDINGS", *sys.argv[2:]])
    kept = {key: value for key, value in document.items() if key not in ("files", "command", "versions")}
    write_json(RESULT, facts | kept)


if __name__ == "__main__":
    main()
