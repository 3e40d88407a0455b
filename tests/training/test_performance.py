"""Speed: what is picked where, that switches change rounding alone, and that nothing stays switched."""

from __future__ import annotations

import contextlib
import copy
import gzip
import itertools
import json
import operator
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import small_runs
import timm
import torch
from conftest import pugdft
from small_runs import Messages
from torch import nn

from pugdft.analysis.objective import twice_differentiable
from pugdft.architectures.cifar_vit import CifarVit
from pugdft.errors import FaultsError, UserError
from pugdft.optim.passes import KeptBuffers
from pugdft.training import performance
from pugdft.training.fast_layers import GemmConv2d, LastBlock, OneDnnLinear
from pugdft.training.performance import Switches, arrange, attention_of, compiled, pick, rounding_of
from pugdft.training.profiler import PARTS, TRACE_NAME, Profile
from pugdft.training.run import finetune, read_recipe
from pugdft.training.setup import RunComponents
from pugdft.training.trainer import Position, Totals, Trainer

SWITCHES = Switches(True, True, "ieee", False, False, False, False)
CONVOLUTIONS = {"name": "test_resnet", "pretrained": False}
EAGER = {"compile": False, "onednn_linear": False, "gemm_convolution": False}  # torch's own kernels


def picked(small: dict[str, Any], device: str = "cpu", precision: str = "fp32", **given: Any) -> Switches:
    train = {**small["train"], "precision": precision, "performance": given or "auto"}
    return pick(read_recipe({**small, "train": train}), device)


@pytest.fixture
def eager_compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Dynamo's graphs and guards without the minute that machine code takes."""
    monkeypatch.setattr(performance, "_COMPILER", "eager")
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def test_auto_and_a_mapping_of_autos_are_one_recipe(small_recipe: dict[str, Any]) -> None:
    short, plain = ({**small_recipe, "train": {**small_recipe["train"], **each}} for each in (
        {"performance": "auto"}, {}))  # fmt: skip
    assert read_recipe(short).digest() == read_recipe(plain).digest()
    assert set(read_recipe(short).as_dict()["train"]["performance"].values()) == {"auto"}
    override = read_recipe(small_recipe, ["train.performance.compile=true"])
    assert override.train.performance.compile is True


@pytest.mark.parametrize(
    ("given", "where", "words"),
    [
        ({"compil": True}, "train.performance.compil", 'Did you mean "compile"'),
        ({"matmul": "fp8"}, "train.performance.matmul", "'tf32'"),
        ({"compile": "yes"}, "train.performance.compile", "'auto'"),
        ("fast", "train.performance", "mapping"),
    ],
)
def test_a_wrong_switch_is_named(small_recipe: dict[str, Any], given: Any, where: str, words: str) -> None:
    small_recipe["train"]["performance"] = given
    with pytest.raises(FaultsError) as caught:
        read_recipe(small_recipe)
    (fault,) = caught.value.faults
    assert fault.where == where
    assert words in fault.message


def test_auto_never_rounds_more_coarsely_than_asked(small_recipe: dict[str, Any]) -> None:
    for device in ("cpu", "cuda", "mps"):
        for precision in ("fp32", "bf16"):
            switches = picked(small_recipe, device, precision)
            assert switches.matmul == "ieee"
            assert not switches.compile


def test_auto_takes_fused_attention_but_where_it_is_slow(small_recipe: dict[str, Any]) -> None:
    assert picked(small_recipe, "cuda", "bf16").fused_attention
    assert picked(small_recipe, "cpu", "fp32").fused_attention
    assert not picked(small_recipe, "cpu", "bf16").fused_attention
    small_recipe["data"]["image_size"] = 512
    assert picked(small_recipe, "cpu", "bf16").fused_attention, "quadratic memory"
    assert not picked(small_recipe, "cpu", "bf16", fused_attention=False).fused_attention


@pytest.mark.parametrize("switch", ["onednn_linear", "gemm_convolution"])
def test_layers_change_hands_only_where_it_is_exact(
    switch: str, small_recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def is_on(**options: Any) -> bool:
        return bool(getattr(picked(small_recipe, **options), switch))

    monkeypatch.setattr(performance, "_blas_is_slow", lambda: True)
    monkeypatch.setattr(performance, "instruction_set", lambda: "AVX2")
    assert is_on()
    assert not is_on(device="cuda")
    assert not is_on(precision="bf16")
    assert not is_on(matmul="bf16")
    assert not is_on(compile=True), "the compiler cannot look inside"
    for others in ({"device": "cuda"}, {"precision": "bf16"}, {"matmul": "bf16"}, {"compile": True}):
        with pytest.raises(UserError, match=switch):
            is_on(**others, **{switch: True})
    if switch == "gemm_convolution":
        assert not is_on(channels_last=False), "the record says what is used"
        with pytest.raises(UserError, match="channels_last"):
            is_on(channels_last=False, gemm_convolution=True)
    monkeypatch.setattr(performance, "_blas_is_slow", lambda: False)
    monkeypatch.setattr(performance, "instruction_set", lambda: "AVX512")
    assert not is_on()
    assert is_on(**{switch: True})


@pytest.mark.parametrize(("device", "matmul"), [("cpu", "tf32"), ("cuda", "bf16"), ("mps", "tf32")])
def test_a_rounding_that_the_device_lacks_is_refused(
    small_recipe: dict[str, Any], device: str, matmul: str
) -> None:
    with pytest.raises(UserError, match=r"train\.performance\.matmul"):
        picked(small_recipe, device, matmul=matmul)


def precision_flags() -> dict[str, str]:
    found = {}
    for name in itertools.chain.from_iterable(performance._ROUNDING_FLAGS.values()):
        with contextlib.suppress(AttributeError, RuntimeError):
            found[name] = str(operator.attrgetter(name)(torch.backends))
    return found


@pytest.mark.parametrize(("device", "matmul"), [("cpu", "bf16"), ("cuda", "tf32"), ("cuda", "ieee")])
def test_rounding_is_set_inside_and_as_before_outside(device: str, matmul: Any) -> None:
    before = precision_flags()
    with rounding_of(replace(SWITCHES, matmul=matmul), device):
        changed = precision_flags()
        if device == "cuda":
            assert torch.backends.cuda.matmul.fp32_precision == matmul
            assert torch.backends.cudnn.conv.fp32_precision == matmul
            # A compiled model reads the old names, and torch refuses if old and new disagree.
            assert torch.backends.cuda.matmul.allow_tf32 is (matmul == "tf32")
            assert torch.backends.cudnn.allow_tf32 is (matmul == "tf32")
        else:
            assert changed["mkldnn.matmul.fp32_precision"] == matmul
            assert changed["cudnn.conv.fp32_precision"] == before["cudnn.conv.fp32_precision"]
    assert precision_flags() == before
    with pytest.raises(ZeroDivisionError), rounding_of(replace(SWITCHES, matmul=matmul), device):
        _ = 1 / 0
    assert precision_flags() == before


@pytest.mark.parametrize("level", [0, 1, 2])
def test_attention_is_as_picked_inside_and_timms_own_outside(level: int) -> None:
    timm.layers.set_fused_attn(level > 0, level > 1)
    try:
        with attention_of(replace(SWITCHES, fused_attention=False)):
            assert not timm.create_model("test_vit").blocks[0].attn.fused_attn
        assert timm.layers.use_fused_attn() is (level > 0)
        assert timm.layers.use_fused_attn(experimental=True) is (level > 1)
        with attention_of(SWITCHES):
            assert timm.create_model("test_vit").blocks[0].attn.fused_attn
    finally:
        timm.layers.set_fused_attn(True)


@pytest.mark.parametrize("shape", [(5, 12), (4, 7, 12), (2, 3, 4, 12), (1, 1, 12)])
@pytest.mark.parametrize("bias", [True, False])
def test_onednns_linear_layer_has_the_values_and_gradients_of_torchs(
    shape: tuple[int, ...], bias: bool
) -> None:
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        pytest.skip("this torch has no oneDNN")
    torch.manual_seed(0)
    ours, exact = nn.Linear(12, 9, bias=bias), nn.Linear(12, 9, bias=bias).double()
    exact.load_state_dict({name: value.double() for name, value in ours.state_dict().items()})
    arrange(ours_in := nn.Sequential(ours), replace(SWITCHES, onednn_linear=True))
    assert type(ours_in[0]) is OneDnnLinear
    x = torch.randn(shape).transpose(0, -2) if len(shape) > 2 else torch.randn(shape)
    a, b = x.clone().requires_grad_(), x.double().requires_grad_()
    weights = torch.randn(9)
    (ours_in(a) * weights).sum().backward()
    (exact(b) * weights.double()).sum().backward()
    torch.testing.assert_close(ours_in(a).double(), exact(b), rtol=1e-5, atol=1e-6)
    pairs = [(a, b), *zip(ours.parameters(), exact.parameters(), strict=True)]
    for mine, reference in pairs:
        assert mine.grad is not None
        torch.testing.assert_close(mine.grad.double(), reference.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "size", "images"),
    [
        (3, 1, 1, (9, 7), 3),
        (3, 2, 1, (9, 8), 3),  # the last row of pixels meets no kernel
        (3, 2, 1, (5, 5), 40),  # 29 images at a time, then 11
        (5, 3, 0, (16, 14), 2),
        ((1, 3), (2, 1), (0, 1), (6, 30), 2),
        (7, 4, 2, (8, 6), 2),
        (2, 3, 0, (9, 11), 2),  # pixels between kernels are skipped
        (3, 1, 2, (4, 4), 1),  # padding of nothing but zeros
    ],
)
@pytest.mark.parametrize("bias", [True, False])
def test_convolutions_by_products_have_the_values_and_gradients_of_torchs(
    kernel: Any, stride: Any, padding: Any, size: tuple[int, int], images: int, bias: bool
) -> None:
    torch.manual_seed(0)
    ours = nn.Conv2d(32, 33, kernel, stride, padding, bias=bias)
    exact = copy.deepcopy(ours).double()
    arrange(model := nn.Sequential(ours), replace(SWITCHES, gemm_convolution=True))
    assert type(model[0]) is GemmConv2d
    x = torch.randn(images, 32, *size).to(memory_format=torch.channels_last)
    a, b = x.clone().requires_grad_(), x.double().requires_grad_()
    output, expected = model(a), exact(b)
    weights = torch.randn_like(output)
    (output * weights).sum().backward()
    (expected * weights.double()).sum().backward()
    assert output.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(output.double(), expected, rtol=1e-5, atol=1e-5)
    for mine, reference in [(a, b), *zip(ours.parameters(), exact.parameters(), strict=True)]:
        assert mine.grad is not None
        torch.testing.assert_close(mine.grad.double(), reference.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "options",
    [{"groups": 2}, {"dilation": 2}, {"padding_mode": "reflect"}, {"padding": "same"}, {"in_channels": 16}],
    ids=lambda options: next(iter(options)),
)
def test_other_convolutions_stay_torchs(options: dict[str, Any]) -> None:
    layer = nn.Conv2d(**{"in_channels": 32, "out_channels": 32, "kernel_size": 3, "padding": 1, **options})
    arrange(nn.Sequential(layer), replace(SWITCHES, gemm_convolution=True))
    assert type(layer) is nn.Conv2d


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vit_tiny_patch16_224", {}),
        ("deit_tiny_distilled_patch16_224", {}),
        ("cifar_vit_tiny_patch4", {"img_size": 16}),
        ("vit_tiny_patch16_224", {"init_values": 0.5, "qkv_bias": False, "reg_tokens": 2}),
        ("vit_tiny_patch16_224", {"drop_path_rate": 0.9, "fc_norm": True, "patch_drop_rate": 0.5}),
    ],
    ids=["class token", "distilled", "ours", "registers", "random depth"],
)
@pytest.mark.parametrize("fused", [True, False])
def test_a_last_block_for_the_tokens_read_has_the_logits_and_gradients_of_the_whole(
    name: str, options: dict[str, Any], fused: bool
) -> None:
    with attention_of(replace(SWITCHES, fused_attention=fused)):
        torch.manual_seed(0)
        whole = timm.create_model(name, **{"img_size": 48, "num_classes": 3, "depth": 2, **options}).double()
    part = copy.deepcopy(whole)
    arrange(part, replace(SWITCHES, channels_last=False), only_logits=True)
    assert type(part.blocks[-1]) is LastBlock
    assert part.state_dict().keys() == whole.state_dict().keys()
    x = torch.randn(4, 3, *whole.patch_embed.img_size, dtype=torch.double)
    for model in whole, part:
        torch.manual_seed(1)
        model(x).logsumexp(1).sum().backward()
        model.gradients = [each.grad for each in model.parameters()]
    assert all(each is not None for each in whole.gradients)
    torch.testing.assert_close(part.gradients, whole.gradients, rtol=1e-9, atol=1e-12)
    assert part.forward_features(x).shape[1] == whole.num_prefix_tokens


@pytest.mark.parametrize(
    "options",
    [
        {"global_pool": "avg"},
        {"proj_drop_rate": 0.1},
        {"attn_drop_rate": 0.1},
        {"qk_norm": True},
        {"depth": 0},
        {"mlp_layer": timm.layers.SwiGLU},
    ],
    ids=lambda options: next(iter(options)),
)
def test_a_last_block_that_is_read_whole_or_computes_something_else_stays(options: dict[str, Any]) -> None:
    model = timm.create_model("vit_tiny_patch16_224", **{"img_size": 48, "depth": 1, **options})
    arrange(model, SWITCHES, only_logits=True)
    assert LastBlock not in map(type, model.modules())


class Averaging(CifarVit):
    """A head of its own, which reads all tokens."""

    def pool(self, x: torch.Tensor, pool_type: str | None = None) -> torch.Tensor:
        return x.mean(1)


def test_a_last_block_that_another_head_reads_stays() -> None:
    arrange(model := Averaging(depth=1, embed_dim=12, num_heads=3), SWITCHES, only_logits=True)
    assert LastBlock not in map(type, model.modules())


def test_a_last_block_is_as_it_was_where_features_are_read_or_timms_layer_has_changed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=48, depth=1)
    arrange(model, SWITCHES)
    assert type(model.blocks[-1]) is not LastBlock
    monkeypatch.setattr(timm.layers.Attention, "forward", lambda self, x, **_: x)
    arrange(model, SWITCHES, only_logits=True)
    assert type(model.blocks[-1]) is not LastBlock


def test_layers_whose_gradient_cannot_be_differentiated_again_are_torchs_in_an_analysis() -> None:
    model = nn.Sequential(nn.Conv2d(32, 32, 3), nn.Flatten(), nn.Linear(32 * 4, 2))
    arrange(model, replace(SWITCHES, onednn_linear=True, gemm_convolution=True))
    twin = twice_differentiable(model)
    loss = twin(torch.randn(2, 32, 4, 4)).square().sum()
    gradients = torch.autograd.grad(loss, list(twin.parameters()), create_graph=True)
    again = torch.autograd.grad(sum(each.square().sum() for each in gradients), list(twin.parameters()))
    assert all(each.abs().sum() > 0 for each in again)


def test_a_frozen_convolution_by_products_passes_the_gradient_on() -> None:
    model = nn.Sequential(nn.Conv2d(32, 32, 3), nn.Conv2d(32, 32, 3))
    arrange(model, replace(SWITCHES, gemm_convolution=True))
    model[1].requires_grad_(False)
    model(torch.randn(2, 32, 8, 8)).sum().backward()
    assert model[0].weight.grad is not None
    assert model[1].weight.grad is None


@pytest.mark.parametrize("channels", [2, 4, 7])
def test_a_convolution_that_torch_cannot_differentiate_is_computed_otherwise(channels: int) -> None:
    # In channels_last, torch's own crashes or never ends.
    layer = nn.Conv2d(channels, 8, 1, stride=2, bias=False)
    model = nn.Sequential(copy.deepcopy(layer))
    arrange(model, SWITCHES)
    images = torch.randn(16, channels, 9, 9)
    results = []
    for network, given in ((layer, images), (model, images.to(memory_format=torch.channels_last))):
        given = given.clone(memory_format=torch.preserve_format).requires_grad_()
        output = network(given)
        output.square().sum().backward()
        results.append((output, given.grad, next(network.parameters()).grad))
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected)


def test_frozen_linear_layers_get_no_gradient() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    arrange(model, replace(SWITCHES, onednn_linear=True))
    model[0].requires_grad_(False)
    model(torch.randn(3, 4)).sum().backward()
    assert model[0].weight.grad is None
    assert model[1].weight.grad is not None


@pytest.mark.parametrize("channels_last", [True, False])
def test_convolutions_run_in_the_layout_that_was_picked(
    channels_last: bool, small_recipe: dict[str, Any]
) -> None:
    small_recipe["model"] = {"name": "test_resnet", "pretrained": False}
    parts = parts_of(small_recipe, channels_last=channels_last)
    found = []

    def look(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        if output.shape[2] > 1:
            found.append(output.is_contiguous(memory_format=torch.channels_last))

    for module in parts.model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(look)
    trained(parts)
    assert found
    assert set(found) == {channels_last}


@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 4), (2, 5, 3, 4), (4,)])
def test_onednn_s_linear_layers_may_be_written_into(shape: tuple[int, ...]) -> None:
    model = nn.Sequential(nn.Linear(4, 6))
    expected = model(torch.ones(shape)).detach() + 1
    arrange(model, replace(SWITCHES, onednn_linear=True))
    output = model(torch.ones(shape))
    output += 1  # as some of timm's models do
    torch.testing.assert_close(output, expected)
    output.sum().backward()
    assert model[0].bias.grad is not None
    assert model[0].bias.grad[0] == output.numel() / 6


def parts_of(small: dict[str, Any], **given: Any) -> RunComponents:
    small["train"]["performance"] = given
    return small_runs.parts_of(small)


def trained(parts: RunComponents, epochs: int = 1) -> dict[str, torch.Tensor]:
    trainer = Trainer(parts, after_step=lambda position, totals: False, total=10**6)
    for epoch in range(epochs):
        trainer.train_epoch(Position(epoch=epoch), Totals(parts.device))
    return parts.backbone.model.state_dict()


@pytest.mark.parametrize(
    "given",
    [
        {"channels_last": False},
        {"fused_attention": False},
        {"onednn_linear": True},
        {"gemm_convolution": True},
    ],
    ids=lambda given: next(iter(given)),
)
@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
def test_switches_change_weights_by_rounding_alone(
    small_recipe: dict[str, Any], name: str, given: dict[str, Any]
) -> None:
    small_recipe["model"] = {"name": name, "pretrained": False}
    plain = {
        "channels_last": True,
        "fused_attention": True,
        "onednn_linear": False,
        "gemm_convolution": False,
    }
    before = {key: value.clone() for key, value in parts_of(small_recipe, **plain).model.state_dict().items()}
    expected = trained(parts_of(small_recipe, **plain))
    found = trained(parts_of(small_recipe, **{**plain, **given}))
    assert list(found) == list(expected)
    moved = sum((expected[key].double() - before[key].double()).norm() ** 2 for key in expected) ** 0.5
    apart = sum((expected[key].double() - found[key].double()).norm() ** 2 for key in expected) ** 0.5
    assert apart < 1e-2 * moved, (float(apart), float(moved))


def num_graphs() -> int:
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


@pytest.mark.slow
@pytest.mark.usefixtures("eager_compiler")
def test_two_graphs_serve_clean_and_perturbed_passes_and_evaluation_compiles_none(
    small_recipe: dict[str, Any],
) -> None:
    small_recipe["model"] = CONVOLUTIONS
    torch._dynamo.utils.counters.clear()
    expected = trained(parts_of(small_recipe, **EAGER), epochs=2)
    assert num_graphs() == 0
    parts = parts_of(small_recipe, compile=True)
    found = trained(parts, epochs=2)
    assert num_graphs() == 2, "one with BatchNorm's statistics moving, one with them held"
    assert not torch._dynamo.utils.counters["graph_break"]
    assert list(found) == list(expected), "no _orig_mod"
    for key in expected:
        torch.testing.assert_close(found[key], expected[key], rtol=1e-4, atol=1e-5)
    parts.backbone.model.eval()
    for size in (7, 5):
        parts.evaluation_model(torch.randn(size, 3, 32, 32))
    assert num_graphs() == 2


@pytest.mark.usefixtures("eager_compiler")
def test_a_compiled_models_perturbed_pass_leaves_batch_norm_statistics() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    fast = compiled(model, replace(SWITCHES, compile=True))
    fast(torch.randn(2, 3, 8, 8))
    mean = model[1].running_mean.clone()
    with KeptBuffers(model)():
        fast(torch.randn(2, 3, 8, 8))
    assert torch.equal(model[1].running_mean, mean)
    fast(torch.randn(2, 3, 8, 8))
    assert not torch.equal(model[1].running_mean, mean)


def test_a_run_says_and_records_what_was_picked_and_restores_flags(
    small_recipe: dict[str, Any], tmp_path: Path
) -> None:
    small_recipe["train"] |= {"performance": {"matmul": "bf16"}, "epochs": 1}
    before, fused, messages = precision_flags(), timm.layers.use_fused_attn(), Messages()
    messages.on_detail = messages.on_message  # type: ignore[method-assign]
    record, _ = finetune(read_recipe(small_recipe), tmp_path / "run", observer=messages)
    assert precision_flags() == before
    assert timm.layers.use_fused_attn() is fused
    assert record.environment["performance"] == {
        "channels_last": True,
        "fused_attention": True,
        "matmul": "bf16",
        "onednn_linear": False,
        "gemm_convolution": False,
        "compile": False,
        "retain_memory": performance.instruction_set() != "AVX2",
    }
    assert "profiled" not in record.environment
    assert any("matmul bf16" in text for text in messages.texts)


@pytest.mark.slow
def test_a_profiled_run_leaves_shares_a_trace_and_the_same_weights(
    small_recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    profiles: list[Profile] = []
    make = Profile.__init__
    monkeypatch.setattr(Profile, "__init__", lambda self, *given: profiles.append(self) or make(self, *given))
    small_recipe["train"]["epochs"] = 3
    recipe, messages = read_recipe(small_recipe), Messages()
    finetune(recipe, tmp_path / "plain")
    record, _ = finetune(recipe, tmp_path / "run", observer=messages, profile=True)
    assert record.environment["profiled"] is True
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == (
        tmp_path / "plain" / "model.safetensors"
    ).read_bytes()
    table = messages.texts[-1].splitlines()
    shares = {line.split()[0]: float(line.split()[-1].rstrip("%")) for line in table[1:-1]}
    assert list(shares) == [*PARTS, "else"]
    assert sum(shares.values()) == pytest.approx(100, abs=1)
    # Not as shares: of a run that was held up for long, a short part is 0.0 %.
    assert min(profiles[-1].seconds[part] for part in ("input", "passes", "evaluation")) > 0
    events = json.loads(gzip.decompress((tmp_path / "run" / TRACE_NAME).read_bytes()))["traceEvents"]
    steps = [event for event in events if str(event.get("name")).startswith("ProfilerStep")]
    assert len({event["name"] for event in steps}) == 3, "three updates, however long the run"
    # SAM: two passes in each of them.
    assert (
        len([e for e in events if e.get("name") == "pugdft.passes" and e.get("cat") == "user_annotation"])
        == 6
    )


def test_a_second_belongs_to_the_innermost_span(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(100))
    profile = Profile(tmp_path, torch.device("cpu"))
    monkeypatch.setattr("pugdft.training.profiler.time.perf_counter", lambda: float(next(clock)))
    with profile.span("optimizer"):
        for _ in range(2):
            with profile.span("passes"):
                pass
    assert profile.seconds == {"optimizer": 3.0, "passes": 2.0}


@pytest.mark.slow
def test_the_command_profiles(recipe_file: Path, tmp_path: Path) -> None:
    done = pugdft(
        "finetune", str(recipe_file), "train.epochs=1", "--profile", "--output", str(tmp_path / "run")
    )
    assert done.returncode == 0, done.stderr
    assert "optimizer" in done.stderr
    assert "no trace" in done.stderr or (tmp_path / "run" / TRACE_NAME).is_file()
    assert done.stdout.strip().endswith("record.yaml")
