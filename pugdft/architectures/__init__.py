"""The papers' networks for small images that timm lacks; importing this registers them as ``cifar_*``.

Then ``timm.create_model("cifar_resnet18")`` builds one, and ``timm.list_models("cifar_*")`` lists all.
"""

from pugdft.architectures import cifar_resnet, pyramidnet, shake_resnet

__all__ = ["cifar_resnet", "pyramidnet", "shake_resnet"]
