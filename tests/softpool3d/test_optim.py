"""Optimisers by name, groups of parameters, freezing."""

import pytest
import torch
from torch import nn

from softpool3d import SoftPool3d
from softpool3d.config_file import load_config
from softpool3d.errors import UsageError
from softpool3d.models import create
from softpool3d.runs.resume import _lay_out
from softpool3d.training.optim import build_optimizer, freeze, is_fused, parameter_groups, train_mode


def optim(*overrides):
    return load_config("r3d_softpool", list(overrides)).optim


def test_norms_biases_and_beta_do_not_decay():
    pool = SoftPool3d(2, beta="learnable", num_channels=2)
    model = nn.Sequential(nn.Conv3d(1, 2, 1), nn.BatchNorm3d(2), pool)
    decayed, rest = build_optimizer(model, optim()).param_groups
    assert [p.ndim for p in decayed["params"]] == [5] and decayed["weight_decay"] == 5e-4
    assert [p.ndim for p in rest["params"]] == [1, 1, 1, 1] and rest["weight_decay"] == 0
    assert any(p is pool.raw_beta for p in rest["params"])


@pytest.mark.parametrize("name", ["sgd", "adamw", "rmsprop", "lamb"])
def test_optimisers_by_name_lower_a_loss(name):
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    optimizer = build_optimizer(model, optim(f"optim.name={name}", "optim.lr=0.01", "optim.weight_decay=0"))
    inputs, targets = torch.randn(32, 4), torch.randn(32, 1)
    losses = []
    for _ in range(20):
        loss = (model(inputs) - targets).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_the_settings_reach_the_optimiser():
    model = nn.Linear(4, 1)
    group = build_optimizer(model, optim("optim.name=adamw", "optim.options.betas=[0.8,0.98]")).param_groups[0]
    assert tuple(group["betas"]) == (0.8, 0.98)
    assert build_optimizer(model, optim("optim.momentum=0.7")).param_groups[0]["momentum"] == 0.7
    for overrides, message in {
        ("optim.name=adamww",): "neither torch nor timm has an optimiser 'adamww'; did you mean .*adamw",
        ("optim.name=adamw", "optim.options.beta=1"): "optim.options: adamw takes no beta; did you mean betas",
        (
            "optim.name=adamw",
            "optim.options.betas=[2,3]",
        ): r"optim: adamw refuses its settings \(betas=\[2, 3\]\): .*[Bb]eta",
        ("optim.name=adamw", "optim.options.betas=[0.9]"): r"optim: adamw refuses its settings \(betas=\[0.9\]\): ",
    }.items():
        with pytest.raises(UsageError, match=message):
            build_optimizer(model, optim(*overrides))


def test_a_fused_optimiser_where_it_can_be_one():
    """torch has no fused SGD of shards, and accelerate does not see what a fused one skips in fp16."""
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    config = {
        name: load_config("r3d_softpool", [override]).train
        for name, override in (("plain", "seed=0"), ("fp16", "train.precision=fp16"), ("shard", "train.shard=true"))
    }
    assert is_fused(config["plain"], gpu) and not is_fused(config["plain"], cpu)
    assert not is_fused(config["fp16"], gpu) and not is_fused(config["shard"], gpu)
    model = nn.Linear(4, 1)
    assert build_optimizer(model, optim(), fused=True).param_groups[0]["fused"]
    assert not build_optimizer(model, optim()).param_groups[0]["fused"]
    assert not build_optimizer(model, optim("optim.options.foreach=true"), fused=True).param_groups[0]["fused"]
    assert not build_optimizer(model, optim("optim.name=asgd"), fused=True).param_groups[0].get("fused")


def test_the_state_of_a_fused_optimiser_lies_as_its_parameters_do():
    """Whatever the checkpoint has it from: that of shards is contiguous."""
    weight = nn.Parameter(torch.randn(3, 4, 2, 2, 2).to(memory_format=torch.channels_last_3d))
    for fused in (True, False):
        optimizer = torch.optim.AdamW([weight], fused=fused)
        moments = torch.randn(weight.shape)
        optimizer.state[weight] = {"step": torch.tensor(3.0), "exp_avg": moments, "exp_avg_sq": moments.square()}
        _lay_out(optimizer)
        state = optimizer.state[weight]
        assert state["exp_avg"].stride() == (weight if fused else moments).stride() and state["step"] == 3
        assert torch.equal(state["exp_avg"], moments) and not state["exp_avg"].requires_grad


def test_layer_decay_goes_from_the_head_to_the_stem():
    model = create("r3d_18", 3, width=4)
    scale = {id(p): g["lr_scale"] for g in parameter_groups(model, 1e-4, 0.5) for p in g["params"]}
    assert scale[id(model.fc.weight)] == scale[id(model.fc.bias)] == 1
    blocks = [block for stage in model.stages().values() for block in stage]
    assert [{scale[id(p)] for p in block.parameters()} for block in blocks if list(block.parameters())] == [
        {0.5 ** (len(blocks) - depth)} for depth, block in enumerate(blocks) if list(block.parameters())
    ]
    assert len(scale) == len(list(model.parameters()))


def test_what_is_frozen_stays():
    model = create("r3d_18", 3, width=4, num_frames=4, crop_size=16)
    freeze(model, ["stem", "layer1.*"])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    train_mode(model)
    optimizer = build_optimizer(model, optim("optim.lr=0.1"))
    model(torch.randn(2, 3, 4, 16, 16))[0, 0].backward()
    optimizer.step()
    same = {name for name, value in model.state_dict().items() if torch.equal(value, before[name])}
    fixed = {name for name in before if name.startswith(("stem.", "layer1."))}
    assert fixed <= same  # running statistics included
    assert not {"layer2.0.conv1.1.running_mean", "layer2.0.conv1.0.weight", "fc.weight"} & same
    with pytest.raises(UsageError, match="no parameter's name fits 'layer9'; they begin with stem, layer1"):
        freeze(model, ["layer9"])
    with pytest.raises(UsageError, match="leaves nothing to train"):
        freeze(model, ["*"])
