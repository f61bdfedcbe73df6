"""Names that learned_optimization published and that are not here, with what each of them needs."""

from itertools import chain


_BY_DATASET: dict[str, tuple[str, ...]] = {
    "cifar100": (
        "ImageMLP_Cifar100_128x128x128_Relu",
        "Conv_Cifar100_32x64x64",
        "Conv_Cifar100_32x64x64_BS32",
        "Conv_Cifar100_32x64x64_Tanh",
        "VIT_Cifar100_wideshallow",
        "VIT_Cifar100_skinnydeep",
        "MLPMixer_Cifar100_small16",
        "MLPMixer_Cifar100_tiny16",
        "MLPMixer_Cifar100_bs256_tiny16",
    ),
    "food101": (
        "VIT_Food101_64_wideshallow",
        "VIT_Food101_64_skinnydeep",
        "MLPMixer_Food101_64_small16",
        "MLPMixer_Food101_64_tiny16",
        "MLPMixer_Food101_64_bs256_tiny16",
    ),
    "imagenet16": (
        "ImageMLP_Imagenet16_Relu256x256x256",
        "Conv_imagenet16_16_64x128x128x128",
        *(f"Resnet_MultiRuntime_{i}" for i in range(5)),
    ),
    "imagenet32": ("Conv_imagenet32_16_32x64x64", *(f"Resnet_MultiRuntime_{i}" for i in range(5, 8))),
    "imagenet64": (
        *(f"Resnet_MultiRuntime_{i}" for i in range(8, 11)),
        "VIT_ImageNet64_wideshallow",
        "VIT_ImageNet64_skinnydeep",
        "MLPMixer_ImageNet64_small16",
        "MLPMixer_ImageNet64_tiny16",
        "MLPMixer_ImageNet64_bs256_tiny16",
    ),
    "lm1b": (
        *(f"TransformerLM_LM1B_MultiRuntime_{i}" for i in range(12)),
        *(f"TransformerLM_LM1B_5layer_{width}width" for width in (32, 128, 256, 512)),
        *(f"RNNLM_lm1bbytes_Patch32_{core}128_Embed64" for core in ("IRNN", "LSTM", "GRU", "VanillaRNN")),
        "RNNLM_lm1bbytes_Patch128_LSTM128_Embed64",
        *(f"RNNLM_lm1bbytes_Patch32_{core}256_Embed128" for core in ("LSTM", "GRU")),
        *(f"RNNLM_lm1b32k_Patch32_{core}256_Embed128" for core in ("VanillaRNN", "LSTM", "IRNN")),
    ),
    "wikipedia": tuple(
        f"RNNLM_wikipediaen{tokens}_Patch32_{core}256_Embed128"
        for tokens in ("32k", "bytes")
        for core in ("LSTM", "GRU")
    ),
}

MISSING_DATA: dict[str, str] = {name: dataset for dataset, names in _BY_DATASET.items() for name in names}
"""Dataset by task name, for tasks whose data outeropt does not provide."""

_LOPT = {
    "LOpt_": (
        *(f"MLPLOpt_FahionMnist_{steps}" for steps in (100, 50, 10)),
        "MLPLOpt_Cifar10_16_10",
        "MLPLOpt_Cifar10_8_50",
        "AdafacMLPLOpt_Cifar10_8_10",
        *(f"AdafacMLPLOpt_FashionMnist_{steps}" for steps in (50, 20)),
        *(f"LearnableAdam_Cifar10_8_{steps}" for steps in (50, 200)),
        "ES4_AdafacMLPLOpt_FashionMnist_20",
        "ES4_LOpt_MLPLOpt_FahionMnist_50",
        "ES4_LOpt_MLPLOpt_Cifar10_16_10",
    ),
    "LOptPES_Adafac_": tuple(
        chain.from_iterable(
            (
                f"{data}_OuterBS16_Length50_Trunc10",
                f"{data}_OuterBS16_Length200_Trunc10",
                f"{data}_OuterBS8_Length50_Trunc5",
                f"{data}_OuterBS4_Length50_Trunc10",
                f"{data}_OuterBS4_Length50_Trunc5",
            )
            for data in ("Fashion", "Cifar")
        )
    ),
}

META_TRAINING: frozenset[str] = frozenset(stem + rest for stem, names in _LOPT.items() for rest in names)
"""Published tasks whose inner problem is the training of a learned optimizer."""
