"""The papers' networks for small images that timm lacks; importing this registers them as ``cifar_*``.

Then ``timm.create_model("cifar_resnet18")`` builds one, and ``timm.list_models("cifar_*")`` lists them.
"""

from pugdft.architectures import (
    cifar_densenet,
    cifar_dla,
    cifar_resnet,
    cifar_vgg,
    cifar_vit,
    pyramidnet,
    shake_resnet,
    upanet,
    wide_resnet,
)

__all__ = [
    "cifar_densenet",
    "cifar_dla",
    "cifar_resnet",
    "cifar_vgg",
    "cifar_vit",
    "pyramidnet",
    "shake_resnet",
    "upanet",
    "wide_resnet",
]
