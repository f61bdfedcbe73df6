"""What there is: names, descriptions, and getting a dataset before it is needed."""

import dataclasses
from pathlib import Path

from outeropt.data import locate, registry


@dataclasses.dataclass(frozen=True)
class Description:
    """Facts about one dataset; `str` gives them as text.

    Attributes:
      name: public name.
      kind: the function of `outeropt.data` that loads it: images, tokens or table.
      title: the full name and what a row is.
      shape: shape of one row; empty for tokens.
      classes: class labels of images, vocabulary of tokens; None for tables.
      splits: rows (or tokens) of each split.
      licence: terms of the data as their source states them.
      citation: whom to cite.
      download_size: bytes that `fetch` brings when nothing is here; 0 for bundled data.
      paths: its files on this machine; empty when some are missing.
    """

    name: str
    kind: str
    title: str
    shape: tuple[int, ...]
    classes: int | None
    splits: dict[str, int]
    licence: str
    citation: str
    download_size: int
    paths: tuple[Path, ...]

    def __str__(self) -> str:
        counted = "tokens" if self.kind == "tokens" else "rows"
        splits = ", ".join(f"{split} {count:,}" for split, count in self.splits.items())
        lines = [f"{self.name}: {self.title}", f"  {counted}: {splits}"]
        if self.shape:
            lines.append(f"  a row: {' x '.join(map(str, self.shape))}")
        if self.classes is not None:
            lines.append(f"  {'vocabulary' if self.kind == 'tokens' else 'classes'}: {self.classes:,}")
        lines += [f"  licence: {self.licence}", f"  cite: {self.citation}"]
        if self.paths:
            lines.append(f"  here: {', '.join(map(str, self.paths))}")
        else:
            lines.append(f"  not here; {self.download_size / 1e6:.1f} MB: outeropt data get {self.name}")
        return "\n".join(lines)


def names() -> tuple[str, ...]:
    """Every dataset's name, images first, then text, then tables."""
    return registry.names()


def describe(name: str) -> Description:
    """Rows, shapes, splits, licence, citation and whereabouts of a dataset. Reads no data.

    Raises:
      UnknownName: no dataset has this name.
    """
    dataset = registry.get(name)
    found = locate.find(dataset)
    return Description(
        name=dataset.name,
        kind=dataset.kind,
        title=dataset.title,
        shape=dataset.shape,
        classes=dataset.classes,
        splits=dict(dataset.splits),
        licence=dataset.licence,
        citation=dataset.citation,
        download_size=sum(file.size for file in dataset.published),
        paths=found.paths if found else (),
    )


def fetch(name: str, show_progress: bool = True) -> tuple[Path, ...]:
    """Brings a dataset to this machine unless it is here, checks it, and replaces corrupt downloads.

    Args:
      name: a name that `names` gives.
      show_progress: whether a download shows its progress on standard error.

    Returns:
      The dataset's files.

    Raises:
      UnknownName: no dataset has this name.
      MissingData: a file could not be downloaded.
      CorruptData: a file in the user's own directory fails its checksum.
    """
    return locate.fetch(registry.get(name), show_progress).paths
