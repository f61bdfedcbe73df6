"""Size in bytes and SHA-256 of every file of every dataset."""

from outeropt.data.files import File


_PREPARED = """
digits.npz 44652 604d38892c6fa2453265c69e32a38c94fc07e1c7bef8a870fa9b33d5488d5de9
mnist.npz 11266757 ca0e4c9c323057cd84efab63b903fce61e76f68d785577e11968e8b931bdf959
fashion_mnist.npz 30611369 b3603edea8048ba28f05454846fefee8ed8ba4aa3eeae08e33890b5ca4427bb2
cifar10_train1.npz 17285200 22e440380db1316e13758a77cc2f8cbf21c722ed34865d7546b6b7c58399874d
cifar10_train2.npz 17342686 941637c4149a9e7d3b28074ee795c5cd590dd82fc42fec398a141e4d8c0c83f8
cifar10_train3.npz 17341132 e7efefee511f3dff82e614af1d6566bc20a5c53a34067cdbf59149521f2463c4
cifar10_train4.npz 17319290 ebd363dfa87381b6070a420edf06ba841f5eca7e07bd1fde3015e80c773966ab
cifar10_train5.npz 17280495 8e561ae22096f2d262e59d119cab6a6cd51f2a7e52a94d3c367ba90be36104f4
cifar10_test.npz 17321226 cbc8226e18f3bdefc4635b67fe101d1cc9f438d64554a87c76e0e0dc770ae3a0
ptb.train.txt.gz 1688035 c4c6455d85f60640431f7bc738d51265ba2d55dcce10e8906322d6f9e3dcca81
ptb.valid.txt.gz 134062 f2148d96d82f827399b7e5040868a4541bd2d2612ebaf5a2ff213bc07fd74eb8
ptb.test.txt.gz 149201 5015d206077ff3e96161868c5c280ec8a28e9ad5617ef99ee0e734aaef6130c5
tinyshakespeare.txt.gz 433627 bed00f18e91cda6838950656f0a95e07e0f4dbe8649a4b959f7602a7e53fbc6e
uci_boston.npz 21410 071e513f08a5f6da5c50161e90ee377ccddf4769e557720713cba399e13749eb
uci_concrete.npz 20655 8f7174e71707e5cd9a0339e82519ff2ab2a04bb68e33eb538191b0ddbee8adcb
uci_energy.npz 11528 cb15c73d67cd97180dd6ec62d8ce186b4da7f9255284c97f2cf62c2bccbf24bb
uci_kin8nm.npz 637788 26598640c02a7b618be3bd03030a87dce6ee96806f2d864738eef6c0f10fe173
uci_naval.npz 586123 93ebaae703ca15f23a1aadf56290ecc35ffc501b89855b6299aa72d0083400e4
uci_power.npz 221655 56979c2bd79b4f5911da56afc4cb2832201caa867a8035763032b96d48f11416
uci_wine.npz 46015 0a5f9a52c9e13bdcc9a6a29d50f28ad131571c8530ff3971121e51fe620add31
uci_yacht.npz 5645 c9ed9f4d75aa252cb4e94cdb9dd38fe4bae4f97132ad0c670733266258adc0bc
"""

_PUBLISHED = """
mnist/train-images-idx3-ubyte.gz 9912422 440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609
mnist/train-labels-idx1-ubyte.gz 28881 3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c
mnist/t10k-images-idx3-ubyte.gz 1648877 8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6
mnist/t10k-labels-idx1-ubyte.gz 4542 f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6
fashion_mnist/train-images-idx3-ubyte.gz 26421880 3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84
fashion_mnist/train-labels-idx1-ubyte.gz 29515 a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845
fashion_mnist/t10k-images-idx3-ubyte.gz 4422102 346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073
fashion_mnist/t10k-labels-idx1-ubyte.gz 5148 67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5
ptb/ptb.train.txt 5101618 fcea919f6cf83f35d4d00c6cbf08040d13d4155226340912e2fef9c9c4102cbf
ptb/ptb.valid.txt 399782 c9fe6985fe0d4ccb578183407d7668fc6066c20700cb4cf87d8ff1cc34df1bf2
ptb/ptb.test.txt 449945 dd65dff31e70846b2a6030a87482edcd5d199130cdcfa1f3dccbb033728deee0
cifar10/cifar-10-binary.tar.gz 170052171 c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd
tinyshakespeare/input.txt 1115394 86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed
uci_boston/data.txt 49082 baadf72995725d76efe787b664e1f083388c79ba21ef9a7990d87f774184735a
uci_boston/permutation_indices.txt 1914 2ec827dca643ff76a1e502bb1ed6fe9462edc2c0df88e1f6be6ec6cde029ca7e
uci_concrete/data.txt 57858 43d290fd2c2a399ad7e62c45cab5337ba94ece69ebdcf5875aa668cb886243de
uci_concrete/permutation_indices.txt 4038 b3d4c491a93acf8ff687f8c19fa65da8b2ddc7fc16c663d10475ba2428f4180f
uci_energy/data.txt 35309 7f8bf024cea437267d56be99b7af7bb3faebec8a7bccfbb20d06d52d9372a950
uci_energy/permutation_indices.txt 2962 e7f266408b1145b0df9715b9886a84f503bf4c3b2d83760d8f4ae8c734ec8ed9
uci_kin8nm/data.txt 1187840 a694ce0c7a21390f2bd2a205c36f2482cd974637a207038696716e22f3bbe810
uci_kin8nm/permutation_indices.txt 39850 4933af8ba8316d4d84f65f8b981ee122bfe7dba7143564ee47706ec98e4f89ba
uci_naval/data.txt 3448926 de0ea69da1efaab8b9655ffed828547d10dd68c1fb8c6e0163e6a988def393a6
uci_naval/permutation_indices.txt 60494 e6204e3557a8d55c1dfe80d2a68fc15aad3ccbb062ea53dd99fd8a521c27626c
uci_power/data.txt 308680 daebd20c408dfc5c4979604f240e891be162c3a5d00d662380aa669044a1fb31
uci_power/permutation_indices.txt 46722 114674d1f60c63e56be5564054a61f9491f83dc0cd449bd257846e5dd35e87f5
uci_wine/data.txt 84027 3ba41eaf4ab562088cf47b5c9dca2b4de2a330c3ee38a7920b4527a09574d5c1
uci_wine/permutation_indices.txt 6883 8b8d061f1c88b0102bda8b87b81812c59399b32cd0eec19d3bc93e27ef6bfd39
uci_yacht/data.txt 11487 00dfecc0fc01ddd4c90b558a3ac11b246df8ebcfea130724223475a9a67f0ea1
uci_yacht/permutation_indices.txt 1122 e3800b4989519ac661ae41da5ef7094d6c851ea997b058766246f1f36e4c31b3
"""  # noqa: E501


def _read(table: str) -> dict[str, tuple[int, str]]:
    lines = (line.split() for line in table.split("\n") if line)
    return {name: (int(size), sha256) for name, size, sha256 in lines}


_TABLE = _read(_PREPARED) | _read(_PUBLISHED)


def files(*names: str, urls: tuple[str, ...] = ()) -> tuple[File, ...]:
    """The files of these names, in order.

    Args:
      names: paths below a data directory, as in the tables above.
      urls: the folders on the web that hold them under their last name, best first.
    """
    return tuple(
        File(name, *_TABLE[name], tuple(f"{url}/{name.rpartition('/')[2]}" for url in urls)) for name in names
    )
