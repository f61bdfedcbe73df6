"""What a dataset is made of: files with checksums, in one of two layouts."""

import dataclasses
from typing import Literal


Kind = Literal["images", "tokens", "table"]
Layout = Literal["prepared", "published"]


@dataclasses.dataclass(frozen=True)
class File:
    """One file of a dataset.

    Attributes:
      name: path below a data directory, with forward slashes.
      size: bytes.
      sha256: checksum of the content, 64 hexadecimal digits.
      urls: places that hold exactly this content, best first; none for a file that is only made by hand.
    """

    name: str
    size: int
    sha256: str
    urls: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Dataset:
    """One entry of the registry.

    A dataset can be read from either of two layouts, which give the same arrays: `prepared` files hold it in
    one compact piece, `published` files are what its authors (or a mirror of theirs) offer for download.

    Attributes:
      name: public name.
      kind: the function of `outeropt.data` that loads it.
      title: the full name and what a row is.
      shape: shape of one row; empty for tokens.
      classes: class labels of images, vocabulary of tokens; None for tables.
      splits: rows (or tokens) of each split.
      licence: terms of the data as their source states them.
      citation: whom to cite.
      prepared: files of the prepared layout.
      published: files of the published layout; empty for bundled data.
    """

    name: str
    kind: Kind
    title: str
    shape: tuple[int, ...]
    classes: int | None
    splits: dict[str, int]
    licence: str
    citation: str
    prepared: tuple[File, ...]
    published: tuple[File, ...] = ()

    @property
    def layouts(self) -> dict[Layout, tuple[File, ...]]:
        """The layouts that exist, in the order in which they are looked for."""
        layouts: dict[Layout, tuple[File, ...]] = {"prepared": self.prepared}
        if self.published:
            layouts["published"] = self.published
        return layouts
