"""Prints the training log of a meta-training folder as the CSV that ships beside its weights.

outeropt metatrain -c configs/metatrain/small_fc.yaml --out runs/small_fc
python benchmarks/weights_log.py runs/small_fc > src/outeropt/learned/weights/small_fc.csv

A row for each validation: the outer steps done, the mean meta-loss of the outer steps since the row before
(in the first row, of the first outer step), and the validation scores.
"""

import argparse
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]


_LOSS, _SCORE = "meta/loss", "validation/"


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    """Values by name and outer step. What a resumed run did again replaces what it had done before."""
    found: dict[str, dict[int, float]] = {}
    for path in sorted((folder / "log").iterdir()):
        for event in _events(path.read_bytes()):
            for value in event.summary.value:
                found.setdefault(value.tag, {})[event.step] = value.simple_value
    return found


def _events(content: bytes) -> Iterator[Event]:
    # TensorBoard's records: the length (8 bytes), its checksum (4), the event, its checksum (4).
    place = 0
    while place + 12 <= len(content):
        (size,) = struct.unpack_from("<Q", content, place)
        end = place + 12 + size
        if end + 4 > len(content):  # a run that was killed while it wrote
            return
        event = Event()
        event.ParseFromString(content[place + 12 : end])
        yield event
        place = end + 4


def table(found: dict[str, dict[int, float]]) -> list[str]:
    """The lines of the CSV."""
    names = [name for name in found if name.startswith(_SCORE)]
    lines, before = [",".join(["outer_steps", "meta_loss", *(n.removeprefix(_SCORE) for n in names)])], 0
    for point in sorted(found[names[0]]):
        steps = range(before, point) if point else range(1)
        loss = np.nanmean([found[_LOSS].get(step, np.nan) for step in steps])
        lines.append(",".join([f"{point}", f"{loss:.4f}", *(f"{found[name][point]:.4f}" for name in names)]))
        before = point
    return lines


def main() -> int:
    """Reads and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    found = scalars(parser.parse_args().folder)
    if not any(name.startswith(_SCORE) for name in found):
        print("The folder's log has no validations.", file=sys.stderr)
        return 2
    print("\n".join(table(found)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
