"""Writes the recipes of this folder but for quickstart.yaml: ``python recipes/generate.py``.

The 24 files differ only in a few values, but each must show the whole run. So this script holds the values
once and writes the files; a test compares them.
"""

from __future__ import annotations

from pathlib import Path

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

# Name in a recipe: title.
DATASETS = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "tiny_imagenet": "Tiny ImageNet"}

TEMPLATE = """\
# {title} (ImageNet weights) fine-tuned on {dataset_title} at 224 px with PUGD over SGD.
#
#   pugdft finetune {name}
#   pugdft bench {name} --optimizers sgd,sam,pugd --seeds 0-2
#
# Settings of the PUGD papers (arXiv 2110.00199): SGD base, cosine, 100 epochs, batch 100. Needs the
# weights and the images from the Hub, or both on disk (the error says where), and, for 100 epochs, a GPU.
model:
  name: {model}  # the tag names the weights; a bare name may change its meaning
  pretrained: true
data:
  name: {dataset}
  image_size: 224
  validation: 0.0  # fraction of the train split held out; the test split is never used to choose
  crop_padding: 4  # random crop after padding, at stored size
  flip: true
optimizer:
  name: pugd
  rho: 1.0
  base: {{name: sgd, lr: {lr}, momentum: 0.9, weight_decay: 5.0e-4}}
schedule: {{name: cosine, warmup_epochs: 0}}
train:
  epochs: 100
  batch_size: 100
  precision: bf16
  seed: 0
"""


def recipe_texts() -> dict[str, str]:
    """File name to text, for every backbone and data set."""
    texts = {}
    for backbone, (title, model, lr) in BACKBONES.items():
        for dataset, dataset_title in DATASETS.items():
            name = f"{backbone}_{dataset}"
            texts[f"{name}.yaml"] = TEMPLATE.format(
                title=title, dataset_title=dataset_title, name=name, model=model, dataset=dataset, lr=lr
            )
    return texts


if __name__ == "__main__":
    for file_name, text in recipe_texts().items():
        (Path(__file__).parent / file_name).write_text(text, encoding="utf-8")
