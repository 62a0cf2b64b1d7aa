"""How a network lies in the memory of several processes: whole on each (DDP), or in shards (FSDP2).

Shards are torch's `fully_shard` directly: accelerate's own FSDP works on GPUs only, and could not be tested on CPUs.
Files and checkpoints hold networks in one piece either way.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from softpool3d.config import TrainConfig
from softpool3d.errors import UsageError


class Whole:
    """The whole network on every process."""

    def wrap(self, network: nn.Module, accelerator: Accelerator) -> nn.Module:
        """Returns the network as training calls it; to be called before the optimiser is made."""
        # in channels_last_3d the strides of a weight of 1x1x1 can be written in two ways: to DDP, they are two layouts
        warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
        return accelerator.prepare(network)

    def place(self, network: nn.Module, accelerator: Accelerator) -> None:
        """Lays out an average of the network, which is not trained, like the network itself."""

    def evaluating(self, network: nn.Module) -> AbstractContextManager[None]:
        """Inside, each process may call the network independently of the others."""
        return nullcontext()

    def state(self, network: nn.Module) -> dict[str, Tensor]:
        """Returns the state dict in one piece, on the first process at least. Every process has to call it."""
        return network.state_dict()

    def load(self, network: nn.Module, state: dict[str, Tensor]) -> None:
        """Loads what `state` returned, on every process."""
        network.load_state_dict(state)

    def average_part(self, average: nn.Module) -> Any:
        """Returns an object whose state_dict and load_state_dict are the average's, in one piece."""
        return average

    def optimizer_part(self, network: nn.Module, optimizer: torch.optim.Optimizer) -> Any:
        """Returns the same for the optimiser."""
        return optimizer


class Sharded(Whole):
    """Parameters, gradients and optimiser state in shards, gathered block by block as they are needed."""

    def wrap(self, network: nn.Module, accelerator: Accelerator) -> nn.Module:
        self.place(network, accelerator)
        return network

    def place(self, network: nn.Module, accelerator: Accelerator) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        network.to(memory_format=torch.contiguous_format)  # of parameters: FSDP2 has no other; clips keep theirs
        mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
        for blocks in network.stages().values():
            for block in blocks:
                if next(block.parameters(), None) is not None:
                    fully_shard(block, mesh=mesh)
        fully_shard(network, mesh=mesh)

    @contextmanager
    def evaluating(self, network: nn.Module) -> Iterator[None]:
        from torch.distributed.fsdp import FSDPModule

        parts = [module for module in network.modules() if isinstance(module, FSDPModule)]
        for part in parts:
            part.set_reshard_after_forward(False, recurse=False)
            part.unshard()
        try:
            yield
        finally:
            for part in parts:
                part.reshard()
                part.set_reshard_after_forward(part is not network, recurse=False)

    def state(self, network: nn.Module) -> dict[str, Tensor]:
        from torch.distributed.checkpoint.state_dict import get_model_state_dict

        return get_model_state_dict(network, options=_one_piece())

    def load(self, network: nn.Module, state: dict[str, Tensor]) -> None:
        from torch.distributed.checkpoint.state_dict import set_model_state_dict

        set_model_state_dict(network, state, options=_one_piece())

    def average_part(self, average: nn.Module) -> Any:
        return _GatheredModule(self, average)

    def optimizer_part(self, network: nn.Module, optimizer: torch.optim.Optimizer) -> Any:
        return _GatheredOptimizer(network, optimizer)


class _GatheredModule:
    def __init__(self, layout: Sharded, module: nn.Module) -> None:
        self._layout, self._module = layout, module

    def state_dict(self) -> dict[str, Tensor]:
        return self._layout.state(self._module)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self._layout.load(self._module, state)


class _GatheredOptimizer:
    def __init__(self, network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self._network, self._optimizer = network, getattr(optimizer, "optimizer", optimizer)  # accelerate's wrapper

    def state_dict(self) -> dict[str, Any]:
        from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

        return get_optimizer_state_dict(self._network, self._optimizer, options=_one_piece())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        from torch.distributed.checkpoint.state_dict import set_optimizer_state_dict

        # parameters go by name here, but by number in the state of a run without shards
        names = {parameter: name for name, parameter in self._network.named_parameters()}
        ours = [names[parameter] for group in self._optimizer.param_groups for parameter in group["params"]]
        theirs = [key for group in state["param_groups"] for key in group["params"]]
        if isinstance(theirs[0], int):
            name_of = dict(zip(theirs, ours, strict=True))
            groups = [group | {"params": [name_of[key] for key in group["params"]]} for group in state["param_groups"]]
            state = {"state": {name_of[key]: value for key, value in state["state"].items()}, "param_groups": groups}
        set_optimizer_state_dict(self._network, self._optimizer, state, options=_one_piece())


def layout(config: TrainConfig, accelerator: Accelerator) -> Whole:
    """Returns the layout that train.shard asks for.

    Raises:
        UsageError: for shards on one process.
    """
    if not config.shard:
        return Whole()
    if accelerator.num_processes == 1:
        raise UsageError("train.shard needs several processes: torchrun --nproc-per-node 8 tools/train.py --cfg ...")
    return Sharded()


def _one_piece() -> Any:
    from torch.distributed.checkpoint.state_dict import StateDictOptions

    return StateDictOptions(full_state_dict=True, cpu_offload=True)
