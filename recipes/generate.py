"""Writes the recipes of this folder but for quickstart.yaml, and tables/: ``python recipes/generate.py``.

The files differ only in a few values, but each must show the whole run. So this script holds the values once
and writes the files; a test compares them. The papers' figures in the headers are those of
``leaderboard/reported``.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from textwrap import fill
from typing import Any, NamedTuple

import yaml

FOLDER = Path(__file__).parent
ARXIV = {"pugd": "2110.00199", "sam_gns": "2110.00199v1", "gnp": "2202.03599"}
DATASETS = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "tiny_imagenet": "Tiny ImageNet"}

TEMPLATE = """\
# {title}.
#
#   pugdft finetune {name}
#   pugdft bench {name} --optimizers {compared}
#
{notes}
model:
  name: {model}{comment}
  pretrained: {pretrained}
{head}data:
  name: {dataset}
  image_size: {side}
{data}optimizer:
{optimizer}
schedule: {{name: cosine, warmup_epochs: 0}}
train:
  epochs: {epochs}
  batch_size: {batch}
  precision: bf16
  seed: 0
"""
HELD_OUT = (
    "  validation: 0.0  # fraction of the train split held out; the test split is never used to choose\n"
)
CROP = "  crop_padding: 4  # random crop after padding, at stored size\n  flip: true\n"


def comment(*paragraphs: str) -> str:
    """Lines of at most 110 characters after ``# ``; no blank line between paragraphs."""
    return "\n".join(fill(each, 110, initial_indent="# ", subsequent_indent="# ") for each in paragraphs)


def spec(name: str, options: str, base: str) -> str:
    """The optimizer section: a method over a base."""
    lines = [f"name: {name}", *options.split(", "), f"base: {{{base}}}"]
    return "\n".join(f"  {line}" for line in lines)


# --- fine-tuning -------------------------------------------------------------------------------------------

# Recipe prefix: (title, timm model with its weights tag, base learning rate of the papers).
BACKBONES = {
    "resnet18": ("ResNet-18", "resnet18.tv_in1k", 0.01),
    "resnet50": ("ResNet-50", "resnet50.tv_in1k", 0.01),
    "resnet101": ("ResNet-101", "resnet101.tv_in1k", 0.01),
    "resnet152": ("ResNet-152", "resnet152.tv_in1k", 0.01),
    "wrn50_2": ("Wide ResNet-50-2", "wide_resnet50_2.tv_in1k", 0.01),
    "wrn101_2": ("Wide ResNet-101-2", "wide_resnet101_2.tv_in1k", 0.01),
    "vit": ("ViT-B/16", "vit_base_patch16_224.augreg_in21k_ft_in1k", 0.001),
    "deit": ("DeiT-B/16", "deit_base_patch16_224.fb_in1k", 0.005),
}


def finetuning_texts() -> dict[str, str]:
    """Recipe name to text, for every backbone and data set."""
    texts = {}
    for backbone, (title, model, lr) in BACKBONES.items():
        for dataset, dataset_title in DATASETS.items():
            name = f"{backbone}_{dataset}"
            texts[name] = TEMPLATE.format(
                title=f"{title} fine-tuned on {dataset_title}",
                name=name,
                compared="sgd,sam,pugd --seeds 0-2",
                notes="# ImageNet weights, 224 px, PUGD over SGD. Settings of the PUGD papers (arXiv "
                "2110.00199): SGD base, cosine,\n# 100 epochs, batch 100. Needs the weights and the images "
                "from the Hub, or both on disk (the error says where),\n# and, for 100 epochs, a GPU.",
                model=model,
                comment="  # the tag names the weights; a bare name may change its meaning",
                pretrained="true",
                head="",
                dataset=dataset,
                side=224,
                data=f"{HELD_OUT}{CROP}",
                optimizer=spec(
                    "pugd", "rho: 1.0", f"name: sgd, lr: {lr}, momentum: 0.9, weight_decay: 5.0e-4"
                ),
                epochs=100,
                batch=100,
            )
    return texts


# --- from scratch ------------------------------------------------------------------------------------------


class Protocol(NamedTuple):
    """What the networks of one paper share."""

    optimizer: str  # the section
    compared: str  # options of the command in the header
    data: str
    epochs: int
    batch: int
    note: str
    cifar100: str = ""  # further lines of data there
    head: str = ""
    side: int = 32


PUGD_STD = "  std: [0.2023, 0.1994, 0.2010]  # of the papers' code, for CIFAR-100 too\n"
CIFAR100_LOOK = "  mean: [0.5071, 0.4865, 0.4409]\n  std: [0.2673, 0.2564, 0.2762]\n"
SGD = "name: sgd, lr: 0.1, momentum: 0.9, weight_decay: 5.0e-4"
NESTEROV = "name: sgd, lr: {}, momentum: 0.9, nesterov: true, weight_decay: {}"
REFLECT = f"{CROP}  padding: reflect\n"
PUGD_NOTE = (
    "Not stated, and read from the authors' code: crops after black padding, flips, the deviation below. The "
    "code anneals once an epoch and lets BatchNorm's statistics follow both passes; pugdft anneals at each "
    "step and takes the clean pass's statistics. One-pass optimizers had 200 epochs: bench with "
    "--budget passes."
)
SAM_GNS_NOTE = (
    "SAM-GNS says \"without augmentation\", but its SAM figures are PUGD's to the digit: read as PUGD's crop "
    "and flip. It states no epochs: read as PUGD's, 100 of two passes and 200 of one."
)
GNP_NOTE = (
    "The figures are of the best test epoch, so a last epoch is expected below them. Epochs are not stated: "
    "those of the authors' script. SAM's rho is not stated: GNP's, of which SAM is the case alpha 1. The "
    "script adds the weight decay to the loss, so to the ascent too; pugdft adds it in the base."
)
CUTOUT_NOTE = (
    "Cutout's size is not stated: 16 pixels, one square for each image (the code cuts one for a batch)."
)
PUGD = Protocol(
    spec("pugd", "rho: 1.0", SGD), "sgd,sam,pugd --seeds 0-2 --budget passes", CROP + PUGD_STD, 100, 100,
    PUGD_NOTE,
)  # fmt: skip
SAM_GNS = PUGD._replace(
    optimizer=spec("sam_gns", "rho: 0.05", SGD), compared="sgd,sam,sam_gns --seeds 0-2 --budget passes"
)
GNP = Protocol(
    spec("gnp", "rho: 0.1, alpha: 0.8, clip: 5.0", NESTEROV.format(0.1, "1.0e-3")),
    "'sgd,sam[rho=0.1],gnp' --seeds 0-4", REFLECT, 200, 256, GNP_NOTE, CIFAR100_LOOK,
)  # fmt: skip
SHAKE = GNP._replace(epochs=1800)
CUTOUT = "  cutout: 16\n"
PYRAMID = SHAKE._replace(
    optimizer=spec("gnp", "rho: 0.1, alpha: 0.8, clip: 5.0", NESTEROV.format(0.05, "5.0e-4")),
    batch=128,
    data=f"{REFLECT}  auto_augment: cifar10\n  mixup: 1.0\n{CUTOUT}",
    note="NOT THE PAPER'S PROTOCOL: that has 164 layers, AutoAugment and CutMix; its script has 272, "
    "AutoAugment, mixup and cutout. This is the script's, with the 25 sub-policies that AutoAugment's paper "
    "prints and an alpha of mixup that is not stated: beside the paper's figures it stands for nothing.",
)
VIT = GNP._replace(
    optimizer=spec("gnp", "rho: 0.1, alpha: 0.8, clip: 5.0", "name: adamw, lr: 1.0e-3, weight_decay: 0.3"),
    compared="'adamw,sam[rho=0.1],gnp' --seeds 0-4",
    epochs=300,
    head="  head_init: zero\n  drop_rate: 0.1\n"
    "  args: {pos_drop_rate: 0.1, proj_drop_rate: 0.1, attn_drop_rate: 0.1}\n",
    note="The figures are of the best test epoch, so a last epoch is expected below them. The paper says 200 "
    "epochs, its script 300: the script's. SAM's rho is not stated: GNP's. GELU is exact; the code's is "
    "the tanh form. The "
    "rows with heavy augmentation are not reproduced: its magnitudes are not printed.",
)
IMAGENET_NOTE = (
    "NEVER RUN HERE. The data is a folder of yours with the subfolders train and val of ImageNet-1k: "
    "data.name=FOLDER. The figures are of the best test epoch. Random resized crops are the paper's "
    '"Inception" preprocessing, as usual; '
)
IMAGENET = GNP._replace(
    data="  random_resized_crop: {scale: [0.08, 1.0], ratio: [0.75, 1.3333]}\n  flip: true\n", side=224,
    compared="'sgd,sam[rho=0.05],gnp' --seeds 0-2 data.name=FOLDER", epochs=100, cifar100="",
)  # fmt: skip


def imagenet(lr: float, batch: int, note: str) -> Protocol:
    return IMAGENET._replace(
        optimizer=spec("gnp", "rho: 0.05, alpha: 0.8, clip: 5.0", NESTEROV.format(lr, "1.0e-4")),
        batch=batch,
        note=IMAGENET_NOTE + note,
    )


class Scratch(NamedTuple):
    """A network with the paper's protocol: one recipe for each data set."""

    title: str
    papers: str  # what the list says after the title
    model: str
    datasets: str
    protocol: Protocol
    cost: tuple[str, str]  # hours of the recipe's run, one seed: two CPU cores; one H200, an estimate
    note: str = ""
    data: str = ""  # further lines


BOTH = "cifar10 cifar100"
SCRATCH = {
    "vgg16_bn": Scratch("VGG16-BN", "PUGD, SAM-GNS", "cifar_vgg16_bn", BOTH, PUGD, ("54", "0.1"),
                        SAM_GNS_NOTE),
    "resnet18": Scratch("ResNet-18", "PUGD, SAM-GNS", "cifar_resnet18", BOTH, PUGD, ("78", "0.1 to 0.2"),
                        SAM_GNS_NOTE),
    "densenet121_k16": Scratch("DenseNet-121 k16", "PUGD", "cifar_densenet121_k16", BOTH, PUGD,
                               ("47", "0.25 to 0.4"), "SAM-GNS has another DenseNet-121, of growth 32."),
    "upanet16": Scratch("UPANet-16", "PUGD, SAM-GNS", "cifar_upanet16", BOTH, PUGD, ("33", "0.2 to 0.3"),
                        SAM_GNS_NOTE),
    "resnet50": Scratch("ResNet-50", "SAM-GNS", "cifar_resnet50", BOTH, SAM_GNS, ("183", "0.3"),
                        SAM_GNS_NOTE),
    "dla": Scratch("DLA", "SAM-GNS", "cifar_dla", "cifar10", SAM_GNS, ("126", "0.2"), SAM_GNS_NOTE),
    "densenet121": Scratch("DenseNet-121", "SAM-GNS", "cifar_densenet121", "cifar10", SAM_GNS, ("135", "0.4"),
                           SAM_GNS_NOTE),
    "upanet64": Scratch("UPANet-64", "SAM-GNS", "cifar_upanet64", "cifar100", SAM_GNS, ("386", "0.6"),
                        "The paper prints 23.59 M parameters; the public network, used here, has 24.20 M. "
                        + SAM_GNS_NOTE),
    "resnet18_cpa": Scratch("ResNet-18 + CPA", "rebuilt", "cifar_resnet18_cpa", BOTH, SAM_GNS,
                            ("154", "0.3"),
                            "A RECONSTRUCTION: no code of this network is public; it was built from the "
                            "paper's words and its number of parameters. " + SAM_GNS_NOTE),
    "wrn28_10": Scratch("WRN-28-10", "GNP", "cifar_wrn28_10_pad", BOTH, GNP, ("1,260", "1 to 1.4")),
    "wrn28_10_cutout": Scratch("WRN-28-10", "GNP", "cifar_wrn28_10_pad", BOTH, GNP,
                               ("1,260", "1 to 1.4"), CUTOUT_NOTE, CUTOUT),
    "shake26_2x96d": Scratch("Shake-Shake", "GNP", "cifar_shake26_2x96d", BOTH, SHAKE, ("8,600", "8 to 12")),
    "shake26_2x96d_cutout": Scratch("Shake-Shake", "GNP", "cifar_shake26_2x96d", BOTH, SHAKE,
                                    ("8,600", "8 to 12"), CUTOUT_NOTE, CUTOUT),
    "vit_tiny": Scratch("ViT-Ti/4", "GNP", "cifar_vit_tiny_patch4", BOTH, VIT, ("157", "0.2")),
    "vit_small": Scratch("ViT-S/4", "GNP", "cifar_vit_small_patch4", BOTH, VIT, ("500", "0.6")),
    "pyramidnet272_a200": Scratch("PyramidNet", "not GNP's", "cifar_pyramidnet272_a200", BOTH, PYRAMID,
                             ("15,600", "17 to 25")),
    "vgg16_bn_imagenet": Scratch("VGG16-BN", "GNP", "vgg16_bn", "", imagenet(
        0.1, 256, "lr and batch are the script's."), ("", "")),
    "resnet50_imagenet": Scratch("ResNet-50", "GNP", "resnet50", "", imagenet(
        0.2, 512, "lr and batch are the script's."), ("", "")),
    "resnet101_imagenet": Scratch("ResNet-101", "GNP", "resnet101", "", imagenet(
        0.2, 512, "lr and batch are those of the script for ResNet-50."), ("", "")),
}  # fmt: skip


@cache
def reported() -> list[dict[str, Any]]:
    """All rows of the papers' tables."""
    files = sorted((FOLDER.parent / "leaderboard" / "reported").glob("*.yaml"))
    return [row for file in files for row in yaml.safe_load(file.read_text(encoding="utf-8"))["rows"]]


def figures(network: Scratch, dataset: str) -> list[str]:
    """A sentence for each table of a paper that has this network on this data set."""
    wanted = {"cutout"} if network.data else {"basic", "inception", None}
    tables: dict[tuple[str, str], list[str]] = {}
    for row in reported():
        is_here = (row["model"], row["dataset"]) == (network.model, dataset) and row["source"] in ARXIV
        if is_here and row.get("augmentation") in wanted:
            words = tables.setdefault((row["source"], row["table"]), [])
            words.append(f"{row['optimizer']} {100 * row['top1']:.2f}")
    return [
        f"Reported, not measured here: arXiv {ARXIV[source]}, Table {table}: {', '.join(words)} %."
        for (source, table), words in tables.items()
    ]


def scratch_texts() -> dict[str, str]:
    """Recipe name to text, for every network and data set."""
    texts = {}
    for stem, network in SCRATCH.items():
        protocol, (cpu, gpu) = network.protocol, network.cost
        length = f"{protocol.epochs:,} epochs of two passes"
        price = (
            f"Cost of one seed, {length}: about {cpu} hours on two CPU cores, or {gpu} hours on an H200 "
            "(both estimates)."
            if cpu
            else f"Cost of one seed, {length}: not measured; days on one GPU."
        )
        for dataset in network.datasets.split() or ["imagenet"]:
            name = f"scratch_{stem}" if dataset == "imagenet" else f"scratch_{stem}_{dataset}"
            place = DATASETS.get(dataset, "ImageNet") + (", cutout" if network.data else "")
            texts[name] = TEMPLATE.format(
                title=f"{network.title} on {place}: {network.papers}",
                name=name,
                compared=protocol.compared,
                notes=comment(
                    f"From random weights at {protocol.side} px.", *figures(network, dataset),
                    *filter(None, (network.note, protocol.note, price)),
                ),
                model=network.model,
                comment="",
                pretrained="false",
                head=protocol.head,
                dataset="path/to/imagenet" if dataset == "imagenet" else dataset,
                side=protocol.side,
                data=protocol.data + network.data + (protocol.cifar100 if dataset == "cifar100" else ""),
                optimizer=protocol.optimizer,
                epochs=protocol.epochs,
                batch=protocol.batch,
            )  # fmt: skip
    return texts


# --- the papers' tables, as bench files --------------------------------------------------------------------

TABLE = """\
# {title}.
#
#   pugdft bench {name} --plan{further}
#   pugdft bench {name}{further}
#
{notes}
recipes: [{recipes}]
optimizers:
{optimizers}
seeds: {seeds}
"""
PUGD_OPTIMIZERS = (
    "sgd", "adagrad[lr=0.1,weight_decay=5e-4]", "ugd", "ngd_cw", "amp", "sam[rho=0.05]", "asam[rho=0.05]",
    "pugd",
)  # fmt: skip
PASSES = "Equal gradient passes, as in the paper: 100 epochs of two passes, 200 of one."
ASAM = (
    "ASAM's rho is almost surely what the paper had, a tenth of the recommended one. The options of AdaGrad "
    "but for lr, and those of AMP, are not stated."
)
GNS_OPTIMIZERS = ("sgd", "sam[rho=0.05]", "asam[rho=0.05]", "sam_gns[rho=0.05]")
GNS_NOTE = f"{PASSES} The paper has one seed; three here."
GNP_OPTIMIZERS = ("sgd", "sam[rho=0.1]", "gnp[rho=0.1,alpha=0.8]")


def scratch(stems: str, *datasets: str) -> list[str]:
    return [f"scratch_{stem}_{dataset}" for dataset in datasets for stem in stems.split()]


class Table(NamedTuple):
    """A comparison of a paper."""

    title: str
    recipes: list[str]
    optimizers: tuple[str, ...]
    seeds: str
    note: str
    further: str = ""  # what the command needs


FOUR = "vgg16_bn resnet18 densenet121_k16 upanet16"
EQUAL_EPOCHS = "Equal epochs: the paper does not say otherwise."
TABLES = {
    "pugd_iv": Table(
        "PUGD, Table IV: CIFAR-10 from scratch",
        scratch(FOUR, "cifar10"),
        PUGD_OPTIMIZERS,
        "0-2",
        f"{PASSES} {ASAM}",
    ),
    "pugd_v": Table(
        "PUGD, Table V: CIFAR-100 from scratch",
        scratch(FOUR, "cifar100"),
        PUGD_OPTIMIZERS,
        "0-2",
        f"{PASSES} {ASAM}",
    ),
    "pugd_i_iii": Table(
        "PUGD, Tables I to III: fine-tuning at 224 px",
        [
            *(
                f"{each}_cifar10"
                for each in ("resnet18", "resnet50", "resnet101", "resnet152", "vit", "deit")
            ),
            *("vit_cifar100", "vit_tiny_imagenet", "deit_tiny_imagenet"),
        ],
        ("sgd", "pugd"),
        "0-2",
        "The tables have PUGD alone, of the best test epoch, without a number of seeds. SGD with the same "
        "epochs is here to compare with.",
    ),
    "sam_gns_2": Table(
        "SAM-GNS, Table 2: CIFAR-10 from scratch",
        scratch("resnet18 resnet18_cpa resnet50 vgg16_bn dla upanet16 densenet121", "cifar10"),
        GNS_OPTIMIZERS,
        "0-2",
        GNS_NOTE,
    ),
    "sam_gns_3": Table(
        "SAM-GNS, Table 3: CIFAR-100 from scratch",
        scratch("resnet18 resnet18_cpa resnet50 vgg16_bn upanet16 upanet64", "cifar100"),
        GNS_OPTIMIZERS,
        "0-2",
        GNS_NOTE,
    ),
    "gnp_1": Table(
        "GNP, Table 1: WRN and Shake-Shake, with and without cutout",
        scratch("wrn28_10 wrn28_10_cutout shake26_2x96d shake26_2x96d_cutout", "cifar10", "cifar100"),
        GNP_OPTIMIZERS,
        "0-4",
        f"{EQUAL_EPOCHS} Left out: its VGG16 rows, whose learning rate is not stated, and PyramidNet's, "
        "whose network and augmentation contradict each other.",
    ),
    "gnp_2_3": Table(
        "GNP, Tables 2 and 3: ViT on CIFAR, basic augmentation",
        scratch("vit_tiny vit_small", "cifar10", "cifar100"),
        ("adamw", *GNP_OPTIMIZERS[1:]),
        "0-4",
        f"{EQUAL_EPOCHS} What the tables call SGD is read as the base of the others, Adam with weight decay.",
    ),
    "gnp_4": Table(
        "GNP, Table 4: ImageNet, in a folder of yours",
        [f"scratch_{each}_imagenet" for each in ("vgg16_bn", "resnet50", "resnet101")],
        ("sgd", "sam[rho=0.05]", "gnp[rho=0.05,alpha=0.8]"),
        "0-2",
        "Never run here.",
        " data.name=FOLDER",
    ),
}


def table_texts() -> dict[str, str]:
    """Table name to text."""
    return {
        name: TABLE.format(
            title=table.title,
            name=name,
            further=table.further,
            notes=comment(table.note, "The papers' own figures: pugdft leaderboard --reported."),
            recipes=", ".join(table.recipes) if len(table.recipes) < 3 else
            "\n  " + ",\n  ".join(table.recipes) + ",\n",
            optimizers="\n".join(f"- {each}" for each in table.optimizers),
            seeds=table.seeds,
        ) + ("budget: passes\n" if PASSES in table.note else "")
        for name, table in TABLES.items()
    }  # fmt: skip


def texts() -> dict[str, str]:
    """Path below this folder to text."""
    recipes = {f"{name}.yaml": text for name, text in (finetuning_texts() | scratch_texts()).items()}
    return recipes | {f"tables/{name}.yaml": text for name, text in table_texts().items()}


if __name__ == "__main__":
    (FOLDER / "tables").mkdir(exist_ok=True)
    for file_name, text in texts().items():
        (FOLDER / file_name).write_text(text, encoding="utf-8")
