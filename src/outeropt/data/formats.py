"""Readers of the file formats that datasets come in. Nothing is ever unpickled."""

import gzip
import struct
import tarfile
from pathlib import Path

import numpy as np


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an `.npz` file, by name."""
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def read_idx(path: Path) -> np.ndarray:
    """The uint8 array of a gzipped IDX file.

    Two zero bytes, the type code (8 for unsigned bytes), the number of axes, each axis' length as a
    big-endian 32-bit integer, then the values in row-major order (LeCun, Cortes and Burges).
    """
    with gzip.open(path) as stream:
        content = stream.read()
    zeros, kind, axes = struct.unpack_from(">HBB", content)
    if zeros != 0 or kind != 8:
        raise ValueError(f"{path} is not an IDX file of unsigned bytes.")
    shape = struct.unpack_from(f">{axes}I", content, 4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape)


def read_filtered_images(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, H, W, 3) uint8 and labels (N,) uint8 of a file with filtered pixels.

    `residual` (3, N, H, W) holds the planes G, R - G and B - G, differenced along rows and then columns; all
    arithmetic is modulo 256.
    """
    arrays = read_npz(path)
    planes = arrays["residual"]
    for axis in (-2, -1):
        planes = np.cumsum(planes, axis=axis, dtype=np.uint8)
    green, red, blue = planes[0], planes[1] + planes[0], planes[2] + planes[0]
    return np.stack([red, green, blue], axis=-1), arrays["y"]


def read_cifar_binary(path: Path, members: tuple[str, ...]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Images (N, 32, 32, 3) uint8 and labels (N,) uint8 of members of the CIFAR-10 binary archive.

    A record is one label byte, then the red, green and blue planes of 1024 bytes each, row by row
    (Krizhevsky).
    """
    batches = {}
    with tarfile.open(path, "r:gz") as archive:
        for entry in archive:
            stream = archive.extractfile(entry) if entry.isfile() else None
            name = entry.name.rpartition("/")[2]
            if stream is not None and name in members:
                records = np.frombuffer(stream.read(), np.uint8).reshape(-1, 1 + 3072)
                planes = records[:, 1:].reshape(-1, 3, 32, 32)
                batches[name] = (np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), records[:, 0])
    return [batches[name] for name in members]


def read_bytes(path: Path) -> bytes:
    """The content of a file, decompressed when its name ends in `.gz`."""
    return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
