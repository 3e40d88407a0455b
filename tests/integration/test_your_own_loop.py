"""Every example of docs/your-own-loop.md, run and compared with float64 computations of the method."""

from __future__ import annotations

import copy
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.helpers.optimizer_cases import deviation

PAGE = (Path(__file__).parents[2] / "docs" / "your-own-loop.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, flags=re.DOTALL | re.MULTILINE))
RHO, LR, MOMENTUM = 0.05, 0.1, 0.9
SPEC = {"name": "sam", "rho": RHO, "base": {"name": "sgd", "lr": LR, "momentum": MOMENTUM}}


def network(dtype: torch.dtype) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).to(dtype)


def batches_of(dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    inputs = [torch.randn(8, 6, generator=generator, dtype=torch.float64) for _ in range(4)]
    targets = [torch.randn(8, 3, generator=generator, dtype=torch.float64) for _ in range(4)]
    return [(a.to(dtype), b.to(dtype)) for a, b in zip(inputs, targets, strict=True)]


def reference(clip: float | None = None) -> tuple[list[Tensor], list[Tensor]]:
    """SAM over SGD with momentum in float64 (arXiv 2010.01412, eq. 2 and 3); also the average of rate 0.9."""
    net = network(torch.float64)
    names = [name for name, _ in net.named_parameters()]
    w = [p.detach() for p in net.parameters()]
    v: list[Tensor] | None = None
    average: list[Tensor] | None = None

    def gradient(at: list[Tensor], batch: tuple[Tensor, Tensor]) -> list[Tensor]:
        leaves = [each.clone().requires_grad_() for each in at]
        output = torch.func.functional_call(net, dict(zip(names, leaves, strict=True)), (batch[0],))
        return list(torch.autograd.grad((output - batch[1]).square().mean(), leaves))

    def norm(vectors: list[Tensor]) -> Tensor:
        return torch.cat([each.flatten() for each in vectors]).norm()

    for batch in batches_of(torch.float64):
        g = gradient(w, batch)
        h = gradient([a + RHO / norm(g) * b for a, b in zip(w, g, strict=True)], batch)
        if clip is not None:
            h = [each * min(1.0, clip / float(norm(h))) for each in h]
        v = h if v is None else [MOMENTUM * a + b for a, b in zip(v, h, strict=True)]
        w = [a - LR * b for a, b in zip(w, v, strict=True)]
        average = w if average is None else [0.9 * a + 0.1 * b for a, b in zip(average, w, strict=True)]
    assert average is not None
    return w, average


def run(section: str, block: int = 0, dtype: torch.dtype = torch.float64, **given: Any) -> dict[str, Any]:
    """Run one example of the page in a namespace of its own."""
    code = re.findall(r"```python\n(.*?)```", SECTIONS[section], flags=re.DOTALL)[block]
    names: dict[str, Any] = {
        "torch": torch, "model": network(dtype), "batches": batches_of(dtype), "spec": SPEC,
        "criterion": nn.functional.mse_loss, "device_type": "cpu", "backend": "aot_eager", **given,
    }  # fmt: skip
    from pugdft.optim import build_optimizer

    names["build_optimizer"] = build_optimizer
    exec(compile(code, f"docs/your-own-loop.md: {section}", "exec"), names)
    return names


@pytest.mark.parametrize(
    "section", ["Plain torch", "Gradient accumulation", "torch.compile", "Accelerate", "Lightning"]
)
def test_example_follows_the_reference(section: str) -> None:
    if section == "Lightning":  # installed by the test extra
        pytest.importorskip("lightning")
    names = run(section)
    assert deviation(list(names["model"].parameters()), reference()[0]) < 1e-10


def test_clipping_acts_on_the_gradient_that_the_base_takes() -> None:
    names = run("Gradient clipping")
    assert deviation(list(names["model"].parameters()), reference(clip=0.1)[0]) < 1e-10
    assert deviation(reference(clip=0.1)[0], reference()[0]) > 1e-2


def test_the_average_is_of_the_weights_between_steps() -> None:
    names = run("A moving average of the weights")
    assert deviation(list(names["average"].module.parameters()), reference()[1]) < 1e-10


@pytest.mark.parametrize("block", [0, 1], ids=["bf16", "fp16 with LossScale"])
def test_mixed_precision_follows_the_reference_as_far_as_its_digits_go(block: int) -> None:
    names = run("Mixed precision", block, torch.float32)
    distance = deviation(list(names["model"].parameters()), reference()[0])
    assert distance < (0.02, 0.004)[block]
    assert deviation(list(network(torch.float64).parameters()), reference()[0]) > 0.1
    assert names["optimizer"].num_skipped_steps == 0


DDP = """
import sys, torch
from torch import nn
sys.path.insert(0, sys.argv[1])
from tests.integration.test_your_own_loop import reference, run
from tests.helpers.optimizer_cases import deviation
torch.distributed.init_process_group("gloo")
rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
names = run("DistributedDataParallel", rank=rank, world=world)
found = deviation(list(names["model"].parameters()), reference()[0])
sys.stdout.write(f"deviation {found}\\n")  # in one piece
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_two_ddp_processes_follow_the_reference_of_the_whole_batch(tmp_path: Path) -> None:
    script = tmp_path / "ddp.py"
    script.write_text(DDP)
    root = str(Path(__file__).parents[2])
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        str(script),
        root,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    # Both print at once, now and then on one line.
    deviations = [float(each) for each in re.findall(r"deviation ([0-9.e+-]+)", done.stdout)]
    assert len(deviations) == 2
    assert max(deviations) < 1e-10


FSDP = """
import sys, torch
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from pugdft.optim import build_optimizer
torch.distributed.init_process_group("gloo")
spec = {"name": "sam", "base": {"name": "sgd", "lr": 0.1}}
for kind in ("fsdp1", "fsdp2", "fsdp2 after construction"):
    net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    try:
        if kind == "fsdp1":
            net = FullyShardedDataParallel(net, use_orig_params=True, device_id=torch.device("cpu"))
        elif kind == "fsdp2":
            fully_shard(net, mesh=torch.distributed.init_device_mesh("cpu", (2,)))
        optimizer = build_optimizer(spec, net)
        if kind == "fsdp2 after construction":
            fully_shard(net, mesh=torch.distributed.init_device_mesh("cpu", (2,)))

        def closure():
            optimizer.zero_grad()
            loss = net(torch.randn(4, 6)).square().mean()
            loss.backward()
            return loss

        optimizer.step(closure)
        print(kind, "accepted")
    except (RuntimeError, ValueError) as error:
        print(kind, "refused", str(error).splitlines()[0])
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_sharded_models_are_refused_at_the_first_step(tmp_path: Path) -> None:
    script = tmp_path / "fsdp.py"
    script.write_text(FSDP)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        str(script),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "accepted" not in done.stdout
    assert done.stdout.count("fsdp1 refused") == 2
    assert "sharded parameters" in done.stdout


def test_a_copy_of_the_page_s_model_is_not_changed_by_the_example() -> None:
    model = network(torch.float64)
    kept = copy.deepcopy(model)
    run("Plain torch", model=model)
    assert deviation(kept, network(torch.float64)) == 0
    assert deviation(kept, model) > 0.01
