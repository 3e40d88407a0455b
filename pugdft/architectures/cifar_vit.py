"""Vision transformers for CIFAR (arXiv 2010.11929): timm's, with patches of 4 × 4 pixels."""

from __future__ import annotations

from typing import Any

from timm.layers import to_2tuple
from timm.models import generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import nn

from pugdft.architectures.frame import check_whole, config, create


class CifarVit(VisionTransformer):
    """timm's vision transformer, which refuses patches that would leave pixels of ``img_size`` unseen.

    The gradient-norm penalty (arXiv 2202.03599) has dropout of 0.1 in four places, all 0 here by default:
    ``drop_rate``, ``pos_drop_rate``, ``proj_drop_rate`` and ``attn_drop_rate``. Its code approximates GELU by
    tanh and starts from a head of zeros; this is the exact GELU, and ``weight_init`` and the head are timm's.
    """

    def __init__(self, img_size: int = 32, patch_size: int = 4, **options: Any) -> None:
        heads, width = options["num_heads"], options["embed_dim"]
        for name, value in (("patch_size", patch_size), ("num_heads", heads), ("embed_dim", width)):
            check_whole(name, value)
        check_whole("depth", options["depth"], least=0)
        if indivisible := [side for side in to_2tuple(img_size) if side % patch_size]:
            raise ValueError(f"patch_size: {patch_size} does not divide the image's {indivisible[0]} pixels")
        if width % heads:
            raise ValueError(f"num_heads: {heads} does not divide embed_dim {width}")
        super().__init__(img_size, patch_size, **options)


def _create(name: str, pretrained: bool, options: dict[str, Any]) -> nn.Module:
    features = {"out_indices": 3, "feature_cls": "getter"}
    # The filter resizes the positions of a file for images of another size.
    own = {"depth": 12, "feature_cfg": features, "pretrained_filter_fn": checkpoint_filter_fn}
    return create(CifarVit, name, pretrained, **{**own, **options})


default_cfgs = generate_default_cfgs(
    dict.fromkeys(
        ("cifar_vit_tiny_patch4", "cifar_vit_small_patch4"),
        config("patch_embed.proj", "head", fixed_input_size=True),
    )
)


@register_model
def cifar_vit_tiny_patch4(pretrained: bool = False, **options: Any) -> nn.Module:
    """ViT-Ti/4 of the gradient-norm penalty's Tables 2 and 3 (arXiv 2202.03599).

    5,362,762 parameters for 10 classes at 32 px, 5,378,122 at 48 px.
    """
    return _create("cifar_vit_tiny_patch4", pretrained, {"embed_dim": 192, "num_heads": 3, **options})


@register_model
def cifar_vit_small_patch4(pretrained: bool = False, **options: Any) -> nn.Module:
    """ViT-S/4 of the gradient-norm penalty's Tables 2 and 3 (arXiv 2202.03599).

    21,342,346 parameters for 10 classes at 32 px, 21,373,066 at 48 px.
    """
    return _create("cifar_vit_small_patch4", pretrained, {"embed_dim": 384, "num_heads": 6, **options})
