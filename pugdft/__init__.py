"""Fine-tune pretrained timm backbones with sharpness-aware and unit-gradient optimizers."""

__version__ = "0.1.0"
