"""Test whether published orderings of fine-tuning strategies hold here.

    python -m benchmarks.orderings [NAME…] [--offline] [--seeds N] [--json]

Each ordering is a data file beside this module, fixed before anything was run. Its outcome is
reproduced, opposite, not distinguishable, or could not be tested, with the reason. Online, public
data sets and pretrained weights are fetched. Offline, the digits and packaged networks are used.
Runs are kept in ordinary run directories and are not trained again.
"""

import argparse
import json
import sys
from pathlib import Path

from benchmarks.orderings.judging import combine_outcomes, judge, mark_untested
from benchmarks.orderings.protocol import Ordering, Where, list_orderings, load_ordering
from benchmarks.orderings.report import Result
from benchmarks.orderings.running import collect_predictions, train_ordering
from finetune_core.errors import ConfigError, FinetuneError
from finetune_core.paths import home


def run_ordering(ordering: Ordering, where: Where, seeds: int, base: Path) -> Result:
    """Test an ordering. If it cannot be tested, the result holds the reason."""
    setup = ordering.setup(where)
    if setup.why_not:
        return Result(ordering, where, seeds, mark_untested(ordering.claims, setup.why_not))
    try:
        predictions = collect_predictions(train_ordering(ordering, setup, seeds, base))
    except FinetuneError as error:
        return Result(ordering, where, seeds, mark_untested(ordering.claims, str(error)))
    return Result(ordering, where, seeds, *judge(ordering.claims, predictions, ordering.measure))


def main(requested: list[str], where: Where, seeds: int | None, base: Path, as_json: bool) -> None:
    """Test orderings and print the results."""
    orderings = [load_ordering(name) for name in requested or list_orderings()]
    results = []
    for ordering in orderings:
        result = run_ordering(ordering, where, seeds or ordering.seeds, base)
        results.append(result)
        if not as_json:
            print(result.to_text(), flush=True)
    if as_json:
        print(json.dumps({"orderings": [result.to_json() for result in results]}, indent=2))
        return
    tested = [
        result.ordering.name
        for result in results
        if combine_outcomes(result.judged) != "could not be tested"
    ]
    print(f"Tested {len(tested)} of {len(results)}, {where}: {', '.join(tested) or 'none'}.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "orderings",
        nargs="*",
        metavar="NAME",
        help=f"of {', '.join(list_orderings())}; all where none is named",
    )
    parser.add_argument(
        "--offline",
        action="store_true",
        help="with what needs no connection, and say what cannot be tested so",
    )
    parser.add_argument("--seeds", type=int, help="in the place of each ordering's own")
    parser.add_argument(
        "--runs-dir",
        type=Path,
        default=home() / "orderings",
        help="where runs and their images are kept",
    )
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.seeds is not None and arguments.seeds < 2:
        parser.error("--seeds: a claim about ways to train needs two seeds or more")
    try:
        main(
            arguments.orderings,
            "offline" if arguments.offline else "online",
            arguments.seeds,
            arguments.runs_dir.resolve(),
            arguments.json,
        )
    except ConfigError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit("Stopped; the same command goes on from there.")
