"""Computes the normalizer that the package ships from archives of the reference's sets.

    python benchmarks/make_normalizer.py runs.db archive/ --sets 'AdamLR_*' --version v1
    python benchmarks/make_normalizer.py more.db --version v1 --extend v1

The second adds tasks to a version and leaves those that it has as they are. Sources are stores and folders of
exported archives. Prints, for each task and curve, the losses that the reference goes through, and as a check
what the reference scores against itself: close to 1.
"""

import argparse
import fnmatch
import pathlib
import sys

import numpy as np

from outeropt import bench
from outeropt.bench import scores
from outeropt.bench.normalizer import Normalizer
from outeropt.errors import OuteroptError
from outeropt.store import Archive, Store, load_folder


SHIPPED = pathlib.Path(bench.__file__).parent / "normalizers"


def read(source: pathlib.Path) -> list[Archive]:
    """The archives of a store or a folder."""
    if source.is_dir():
        return load_folder(source)
    with Store(source, "read") as store:
        return store.archives()


def against_itself(archives: list[Archive], normalizer: Normalizer, task: str, curve: str) -> float:
    """Mean speed-up over seeds of the best of the reference's own settings."""
    own = [archive for archive in archives if archive.task == task]
    return max(float(scores.speedups(archive, normalizer, curve).mean(axis=1).max()) for archive in own)


def main() -> int:
    """Reads, computes, prints, writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sources", nargs="+", type=pathlib.Path)
    parser.add_argument(
        "--version", required=True, help="the normalizer's name; the highest is the default one"
    )
    parser.add_argument("--sets", default="*", help="only sets whose names match this pattern")
    parser.add_argument("--extend", help="a shipped version: what it knows stays, new tasks are added")
    parser.add_argument("--out", type=pathlib.Path, default=None, help="default: the package's own folder")
    args = parser.parse_args()
    try:
        found = [archive for source in args.sources for archive in read(source)]
        found = [archive for archive in found if fnmatch.fnmatchcase(archive.set, args.sets)]
        normalizer = new = Normalizer.from_archives(found, args.version)
        if args.extend:
            kept = Normalizer.shipped(args.extend)
            normalizer = Normalizer(
                args.version,
                {**new.envelopes, **kept.envelopes},
                tuple(sorted({*new.made_from, *kept.made_from})),
            )
        out = args.out or SHIPPED / f"{args.version}.npz"
        out.parent.mkdir(parents=True, exist_ok=True)
        normalizer.save(out)
    except OuteroptError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{'task':45} {'curve':11} {'start':>9} {'half way':>9} {'end':>9} {'horizon':>8} {'itself':>7}")
    for (task, curve), envelope in sorted(new.envelopes.items()):
        half = np.interp(envelope.horizon / 2, envelope.steps, envelope.losses)
        itself = against_itself(found, normalizer, task, curve)
        print(
            f"{task:45} {curve:11} {envelope.losses[0]:9.4f} {half:9.4f} {envelope.losses[-1]:9.4f} "
            f"{envelope.horizon:8.0f} {itself:7.2f}"
        )
    print(f"{out}: {len(normalizer.tasks)} tasks, {out.stat().st_size / 1e3:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
