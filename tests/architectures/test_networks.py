"""The networks for small images: sizes, what timm and pugdft ask of a model, equality with references."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from cifar_networks import (
    LOGITS,
    NETWORKS,
    OTHER_SIZES,
    SIZES,
    fill,
    images,
    logits_of,
    narrow,
    narrow_arguments,
    num_parameters,
)
from network_references import REFERENCES
from optimizer_cases import spec_of
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from pugdft.config.schema import ModelSection
from pugdft.errors import UserError
from pugdft.models import build_model, model_faults
from pugdft.optim import build_optimizer

FROM_32_PX = [name for name in NETWORKS if "vgg" in name]
each_network = pytest.mark.parametrize("name", NETWORKS)


# --- sizes -------------------------------------------------------------------------------------------------


@each_network
def test_parameters_and_multiply_adds_are_the_published_ones(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name).eval()
        counts = [sum(each.numel() for each in model.parameters())]
        with torch.inference_mode(), FlopCounterMode(display=False) as counter:
            assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
        model.reset_classifier(100)
        counts.append(sum(each.numel() for each in model.parameters()))
    assert counts == [SIZES[name].of_10, SIZES[name].of_100]
    assert counter.get_total_flops() / 2e9 == pytest.approx(SIZES[name].gmac, rel=5e-3)


@pytest.mark.parametrize(("name", "arguments", "count"), OTHER_SIZES)
def test_arguments_give_the_published_sizes(name: str, arguments: dict[str, Any], count: int) -> None:
    assert num_parameters(name, **arguments) == count


@pytest.mark.parametrize("side", [8, 48])
@each_network
def test_image_sizes_fit_or_are_refused_in_words(name: str, side: int) -> None:
    section = ModelSection.model_validate({"name": name, "pretrained": False, "args": narrow_arguments(name)})
    if name in FROM_32_PX and side < 32:
        with pytest.raises(UserError) as error:
            build_model(section, 3, side, 0)
        problem = "five pools halve the image: at least 32 pixels a side are needed"
        model = f"{name} as model.args changes it"
        assert str(error.value) == f"data.image_size: {side} does not fit {model}: {problem}"
        return
    model = build_model(section, 3, side, 0).model
    logits = model(images(2, side))  # in training mode: norms by the batch too
    assert logits.shape == (2, 3)
    assert logits.isfinite().all()


def test_an_odd_side_is_rounded_up_by_all_wide_resnets() -> None:
    assert narrow("cifar_wrn28_10_pad").forward_features(images(2, 37)).shape[2:] == (10, 10)
    assert narrow("cifar_wrn28_10").forward_features(images(2, 37)).shape[2:] == (10, 10)


# --- references --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", REFERENCES)
def test_equals_its_reference(name: str) -> None:
    """Logits and the gradient of every parameter, in float64 and training mode."""
    model = narrow(name, drop_rate=0.0).double().train()
    fill(model)
    x, targets = images(3, dtype=torch.float64), torch.tensor([1, 4, 7])
    parameters = dict(model.named_parameters())
    logits = [model(x), REFERENCES[name](parameters, x)]
    assert deviation(logits[0], logits[1]) < 1e-12
    first, second = (
        torch.autograd.grad(functional.cross_entropy(each, targets), list(parameters.values()))
        for each in logits
    )
    # A bias before BatchNorm has a gradient of rounding alone, so they are compared in one.
    assert deviation(*(torch.cat([each.flatten() for each in all_]) for all_ in (first, second))) < 1e-10


def deviation(first: Tensor, second: Tensor) -> float:
    return float((first - second).detach().norm() / second.detach().norm())


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if SIZES[name].of_10 > 2e7 else ()) for name in NETWORKS],
)
def test_logits_of_the_filled_network_are_the_stored_ones(name: str) -> None:
    """Old weights give the answers that they gave; tests/helpers/cifar_networks.py stores new rows."""
    stored = json.loads(LOGITS.read_text())
    assert name in stored, f"run python tests/helpers/cifar_networks.py to store {name}'s row"
    torch.testing.assert_close(
        torch.tensor(logits_of(name), dtype=torch.float64),
        torch.tensor(stored[name], dtype=torch.float64),
        rtol=1e-8,
        atol=1e-8,
    )


@each_network
def test_evaluation_of_a_batch_is_that_of_each_image(name: str) -> None:
    model, x = narrow(name), images(3) * torch.tensor([1.0, 5.0, 25.0])[:, None, None, None]
    fill(model)
    with torch.no_grad():
        model.train()(x)  # running statistics that are not 0 and 1
        model.eval()
        together, alone = model(x), torch.cat([model(each[None]) for each in x])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    assert (together[0] - together[1]).abs().max() > 1e-3


# --- what timm and pugdft ask of a model -------------------------------------------------------------------


@each_network
def test_names_are_not_timm_s(name: str) -> None:
    assert not hasattr(timm.models, name)
    module = timm.models.model_entrypoint(name).__module__
    assert module.startswith("pugdft.architectures.")
    assert not hasattr(timm.models, module.rpartition(".")[2]), "timm lists models by a module's last name"


@each_network
def test_configuration_is_cifar_s(name: str) -> None:
    config, model = timm.get_pretrained_cfg(name), narrow(name)
    assert (config.url, config.input_size, config.num_classes, config.crop_pct) == ("", (3, 32, 32), 10, 1.0)
    assert config.mean == (0.4914, 0.4822, 0.4465)
    assert config.std == (0.2470, 0.2435, 0.2616)
    first = model.get_submodule(config.first_conv)
    assert isinstance(first, nn.Conv2d)
    assert first.in_channels == 3
    assert model.get_submodule(config.classifier) is model.get_classifier()


@each_network
def test_head_is_laid_in_anew_and_taken_off(name: str) -> None:
    model: Any = narrow(name).eval()
    x = images()
    with torch.no_grad():
        before = model.forward_head(model.forward_features(x), pre_logits=True)
        assert before.shape == (2, model.head_hidden_size)
        assert model.get_classifier().in_features == model.head_hidden_size
        torch.testing.assert_close(model.get_classifier()(before), model(x))
        model.reset_classifier(7)
        assert model.num_classes == 7
        assert model(x).shape == (2, 7)
        assert model.get_classifier().out_features == 7
        model.reset_classifier(0)
        torch.testing.assert_close(model(x), before)


@each_network
def test_maps_are_as_their_table_says(name: str) -> None:
    model: Any = narrow(name, features_only=True).eval()
    channels, reductions = model.feature_info.channels(), model.feature_info.reduction()
    maps = model(images(1))
    expected = [(1, each, 32 // r, 32 // r) for each, r in zip(channels, reductions, strict=True)]
    assert [tuple(each.shape) for each in maps] == expected
    assert len(maps) >= 3


@each_network
def test_a_file_of_weights_gives_the_model_again(name: str, tmp_path: Path) -> None:
    model, path = narrow(name), tmp_path / "model.safetensors"
    with torch.no_grad():
        model.train()(images())
    safetensors.torch.save_file(model.state_dict(), path)
    again = timm.create_model(name, checkpoint_path=str(path), **narrow_arguments(name))
    assert model.state_dict().keys() == again.state_dict().keys()
    assert all(torch.equal(again.state_dict()[key], each) for key, each in model.state_dict().items())


@pytest.mark.parametrize(
    ("name", "num_classes"), [("cifar_resnet18", 10), *((name, 100) for name in NETWORKS)]
)
def test_a_file_for_other_classes_gives_the_backbone(name: str, num_classes: int, tmp_path: Path) -> None:
    """10 classes are what the configuration says, which timm compares with the model's."""
    source, path = narrow(name, num_classes=num_classes), tmp_path / "model.safetensors"
    with torch.no_grad():
        source.train()(images())
    safetensors.torch.save_file(source.state_dict(), path)
    given = {"name": name, "pretrained": str(path), "args": narrow_arguments(name)}
    assert model_faults(given) == []
    backbone = build_model(ModelSection.model_validate(given), 7, 32, 0)
    state, classifier = backbone.model.state_dict(), timm.get_pretrained_cfg(name).classifier
    heads = [key for key in state if key.startswith(f"{classifier}.")]
    assert len(heads) == 2
    assert all(len(state[key]) == 7 for key in heads)
    others = {key: each for key, each in source.state_dict().items() if key not in heads}
    # A file's count of batches is not among what pugdft asks for.
    assert all(torch.equal(state[key], each) for key, each in others.items() if each.is_floating_point())


def file_of_32_px(name: str, folder: Path) -> dict[str, Any]:
    """A recipe's model that begins with weights of a narrow network for 32 px, all 3."""
    weights = {key: torch.full_like(each, 3) for key, each in narrow(name).state_dict().items()}
    safetensors.torch.save_file(weights, folder / "model.safetensors")
    return {"name": name, "pretrained": str(folder / "model.safetensors"), "args": narrow_arguments(name)}


def test_positions_of_a_file_are_resized(tmp_path: Path) -> None:
    given = file_of_32_px("cifar_vit_tiny_patch4", tmp_path)
    model: Any = build_model(ModelSection.model_validate(given), 3, 48, 0).model
    assert model.pos_embed.shape == (1, 1 + 12 * 12, 48)
    torch.testing.assert_close(model.pos_embed, torch.full_like(model.pos_embed, 3))


def test_pixel_summaries_of_a_file_for_another_size_are_refused(tmp_path: Path) -> None:
    given = file_of_32_px("cifar_upanet16", tmp_path)
    with pytest.raises(UserError, match=r"model\.safetensors: does not fit cifar_upanet16: .*size mismatch"):
        build_model(ModelSection.model_validate(given), 3, 64, 0)


@each_network
def test_layer_decay_reaches_every_parameter_once_from_stem_to_head(name: str) -> None:
    model = narrow(name)
    spec = {"name": "sgd", "lr": 1.0, "layer_decay": 0.5}
    optimizer = build_optimizer(spec, model)
    rates = {id(each): group["lr"] for group in optimizer.param_groups for each in group["params"]}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))
    config = timm.get_pretrained_cfg(name)
    first, last = (model.get_submodule(each).weight for each in (config.first_conv, config.classifier))
    lowest, highest = min(rates.values()), max(rates.values())
    assert rates[id(first)] == lowest < highest == rates[id(last)] == 1.0
    assert len(set(rates.values())) >= 4


@each_network
def test_memory_formats_and_narrow_numbers(name: str) -> None:
    model, x = narrow(name).eval(), images()
    with torch.no_grad():
        plain = model(x)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = model(x)
        pixel_by_pixel = model.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(pixel_by_pixel, plain, rtol=1e-4, atol=1e-5)
    assert rounded.dtype is torch.bfloat16
    assert (rounded - plain).abs().max() < 0.1 * plain.abs().max()


@each_network
def test_gradient_checkpointing_changes_no_gradient(name: str) -> None:
    gradients = []
    for saves_memory in (False, True):
        model: Any = narrow(name, drop_rate=0.0).train()
        model.set_grad_checkpointing(saves_memory)
        torch.manual_seed(0)
        functional.cross_entropy(model(images()), torch.tensor([1, 2])).backward()
        gradients.append([each.grad.clone() for each in model.parameters()])
    for first, second in zip(*gradients, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-6)


def update(name: str, method: str) -> None:
    model = narrow(name, drop_rate=0.0).train()
    before = [each.detach().clone() for each in model.parameters()]
    optimizer = build_optimizer(spec_of(method), model, total_steps=10)
    x, targets = images(4), torch.arange(4)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(x), targets)
        loss.backward()
        return loss

    loss = optimizer.step(closure)
    assert loss is not None
    assert torch.as_tensor(loss).isfinite()
    after = list(model.parameters())
    assert all(each.isfinite().all() for each in after)
    assert any(not torch.equal(first, second) for first, second in zip(before, after, strict=True))


@each_network
def test_an_update_of_unit_gradients_is_finite(name: str) -> None:
    update(name, "pugd")


@pytest.mark.parametrize("method", ["sam", "asam", "rwp", "ngd_cw"])
def test_rules_of_an_element_a_filter_and_a_tensor_update_a_network_with_pixel_attention(method: str) -> None:
    update("cifar_upanet16", method)


# --- arguments ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "arguments", "problem"),
    [
        ("cifar_upanet16", {"width": 6}, "width: 6 is no multiple of 4 from 4 on"),
        ("cifar_wrn28_10", {"depth": 26}, "depth: 26 is not 6n + 4, such as 28"),
        ("cifar_wrn28_10", {"width": 0}, "width: 0 is no whole number from 1 on"),
        ("cifar_wrn28_10", {"shortcut": "none"}, 'shortcut: "none" is neither conv nor pad'),
        ("cifar_resnet18", {"width": 5}, "width: 5 is no multiple of 2 from 2 on"),
        ("cifar_resnet18", {"init": "xavier"}, 'init: "xavier" is neither torch nor he'),
        ("cifar_resnet18_cpa", {"width": 0}, "width: 0 is no whole number from 1 on"),
        ("cifar_densenet121", {"growth_rate": 0}, "growth_rate: 0 is no whole number from 1 on"),
        ("cifar_densenet121", {"stem_type": "deep"}, "a stem that this network does not have"),
        ("cifar_dla", {"width": -1}, "width: -1 is no whole number from 1 on"),
        ("cifar_vgg16_bn", {"width": 0}, "width: 0 is no whole number from 1 on"),
        ("cifar_vgg16_bn", {"hidden": -1}, "hidden: -1 is no whole number from 0 on"),
        ("cifar_vgg16_fc4096", {"global_pool": "catavgmax"}, "avg, max and avgmax do"),
        ("cifar_vit_tiny_patch4", {"patch_size": 5}, "patch_size: 5 does not divide the image's 32 pixels"),
        ("cifar_vit_tiny_patch4", {"num_heads": 5}, "num_heads: 5 does not divide embed_dim 192"),
        ("cifar_upanet16", {"width": 4.0}, "width: 4.0 is no whole number"),
        ("cifar_upanet16", {"width": "4"}, 'width: "4" is no whole number'),
        ("cifar_wrn28_10", {"depth": "deep"}, 'depth: "deep" is no whole number'),
        ("cifar_resnet18", {"layers": [1, 1]}, "layers: (1, 1) are not four numbers of blocks"),
        ("cifar_resnet18", {"layers": [1, 1, 1, 1, 1]}, "are not four numbers of blocks, such as [2,"),
        ("cifar_resnet18", {"layers": 2}, "layers: 2 are not four numbers of blocks"),
        ("cifar_resnet50", {"layers": [1, 0, 1, 1]}, "layers: 0 is no whole number from 1 on"),
        ("cifar_resnet18", {"block": "Bottleneck"}, "block: is a class; cifar_resnet18 and cifar_resnet50"),
        ("cifar_resnet18", {"channels": [1, 2, 3, 4]}, "channels: cannot be given: width decides"),
        ("cifar_resnet18", {"stem_width": 32}, "stem_width: cannot be given: width decides"),
        ("cifar_vgg16_bn", {"batch_norm": "maybe"}, 'batch_norm: "maybe" is neither true nor false'),
        ("cifar_vgg16_fc4096", {"global_pool": ""}, 'global_pool: "" does not fit hidden layers'),
        ("cifar_shake26_2x96d", {"shortcut_relu": 1}, "shortcut_relu: 1 is neither true nor false"),
        ("cifar_pyramidnet164_a48", {"bottleneck": "no"}, 'bottleneck: "no" is neither true nor false'),
        ("cifar_pyramidnet164_a48", {"alpha": True}, "alpha: True is no number from 0 on"),
        ("cifar_pyramidnet164_a48", {"shake_drop_rate": "a"}, 'shake_drop_rate: "a" is not in 0..1'),
    ],
)
def test_arguments_that_fit_no_network_are_refused_in_words(
    name: str, arguments: dict[str, Any], problem: str
) -> None:
    faults = model_faults({"name": name, "pretrained": False, "args": arguments})
    assert [fault.where for fault in faults] == ["model.args"]
    assert problem in faults[0].message
    with pytest.raises(ValueError, match=next(iter(arguments))):
        timm.create_model(name, **arguments)


def test_hidden_layers_refuse_to_lose_their_pool() -> None:
    with pytest.raises(ValueError, match='global_pool: "" does not fit hidden layers'):
        narrow("cifar_vgg16_fc4096").reset_classifier(0, "")  # type: ignore[operator]


@each_network
def test_arguments_of_timm_s_extractors_are_taken(name: str) -> None:
    """No classes; and no pool, but where hidden layers need one."""
    pool = {} if "fc4096" in name else {"global_pool": ""}
    model: Any = narrow(name, num_classes=0, **pool).eval()
    values = model(images(1))
    assert values.shape[1 if values.ndim == 4 else -1] == model.num_features or "fc4096" in name


@pytest.mark.parametrize(
    ("name", "args"),
    [("cifar_resnet18", {"width": 2, "global_pool": ""}), ("test_resnet", {"layers": [1, 1]})],
)
def test_arguments_that_only_a_pass_can_tell_are_refused_too(name: str, args: dict[str, Any]) -> None:
    """timm builds the first and cannot run it; of the second it fails in words of its own."""
    section = ModelSection.model_validate({"name": name, "pretrained": False, "args": args})
    with pytest.raises(UserError, match=f"does not fit {name} as model.args changes it: "):
        build_model(section, 3, 32, 0)


@pytest.mark.parametrize("name", ["cifar_vgg16_fc4096", "cifar_vgg16_bn_fc4096"])
def test_the_penalty_s_vgg_starts_as_in_its_code(name: str) -> None:
    head: Any = narrow(name).get_classifier()
    assert (head.bias == 0).all()
    assert float(head.weight.detach().abs().max()) > head.in_features**-0.5  # beyond torch's default


def test_a_model_with_pixel_summaries_refuses_images_of_another_size() -> None:
    with pytest.raises(ValueError, match=r"images of 64×64 pixels .* built for img_size 32×32"):
        narrow("cifar_upanet16")(images(2, 64))
    with pytest.raises(ValueError, match="at least 8 pixels a side"):
        narrow("cifar_upanet16", img_size=4)


@pytest.mark.parametrize("name", ["cifar_resnet18", "cifar_wrn28_10", "cifar_densenet121", "cifar_upanet16"])
def test_initialisations_have_their_deviations(name: str) -> None:
    """torch: U(±1/√inputs), so 1/√(3 inputs); he: √(2 / outputs), of the taps of all output channels."""
    for init in ("torch", "he"):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = timm.create_model(name, init=init, **({"depth": 10} if "wrn" in name else {}))
        largest = max(
            (m for m in model.modules() if isinstance(m, nn.Conv2d)), key=lambda m: m.weight.numel()
        )
        inputs, outputs = largest.weight[0].numel(), largest.weight[:, 0].numel()
        expected = (2 / outputs) ** 0.5 if init == "he" else (1 / (3 * inputs)) ** 0.5
        assert float(largest.weight.detach().std()) == pytest.approx(expected, rel=0.02)
        norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
        assert norms
        assert all((m.weight == 1).all() and (m.bias == 0).all() for m in norms)
        head: Any = model.get_classifier()
        bound = head.out_features**-0.5 if init == "he" else head.in_features**-0.5
        assert 0.9 * bound < float(head.weight.detach().abs().max()) <= bound
        assert bool((head.bias == 0).all()) is (init == "he")


# --- training ----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("name", "width"), [("cifar_resnet18", 8), ("cifar_upanet16", 4)])
def test_a_narrow_network_memorises_random_labels(name: str, width: int) -> None:
    """60 updates over two batches of 64 images of noise."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((128, 3, 32, 32), generator=generator)
    targets = torch.randint(10, (128,), generator=generator)
    torch.manual_seed(0)
    model = timm.create_model(name, width=width).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for step in range(60):
        half = slice(64 * (step % 2), 64 * (step % 2) + 64)
        loss = functional.cross_entropy(model(x[half]), targets[half])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        correct = (model.eval()(x).argmax(1) == targets).float().mean()
    assert float(correct) >= 0.99
