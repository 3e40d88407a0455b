"""Fine-tune pretrained timm backbones with sharpness-aware and unit-gradient optimizers.

The names below are imported when they are first used, so that ``import pugdft`` costs nothing.
"""

TYPE_CHECKING = False  # type checkers take it for true; `typing` itself would cost more than the rest
if TYPE_CHECKING:
    from pugdft.api.runs import compare, finetune, load_recipe, load_run, load_runs
    from pugdft.errors import RunFailed, UserError
    from pugdft.optim import build_optimizer

__version__ = "0.1.0"

_HOMES = {
    "finetune": "pugdft.api.runs",
    "load_recipe": "pugdft.api.runs",
    "load_run": "pugdft.api.runs",
    "load_runs": "pugdft.api.runs",
    "compare": "pugdft.api.runs",
    "build_optimizer": "pugdft.optim",
    "UserError": "pugdft.errors",
    "RunFailed": "pugdft.errors",
}

__all__ = [
    "RunFailed",
    "UserError",
    "build_optimizer",
    "compare",
    "finetune",
    "load_recipe",
    "load_run",
    "load_runs",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
