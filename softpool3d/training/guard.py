"""Finds a loss or gradient that is NaN or infinite before it reaches the weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from softpool3d.datasets.manifest import Manifest
from softpool3d.errors import WorkError
from softpool3d.files import write_csv
from softpool3d.training.average import Average, copy

FILE = "nonfinite.csv"
_MOST = 20  # updates in a row that are skipped before the run stops nevertheless
_UNREAD = 20  # verdicts that may wait on the device until the host reads them


@dataclass
class _Verdict:
    """The verdict on one update; all tensors but `indices` have shape () and lie on the device."""

    epoch: int
    step: int
    good: Tensor  # whether the update may be made
    loss: Tensor  # the sum over its batches
    gradient: Tensor  # the gradients' norm
    indices: Tensor  # its clips' places in the manifest, on the CPU


class LossGuard:
    """Finds updates that must not be made, and writes down the files that they came from.

    Such an update never touches the weights. With train.on_nonfinite=skip, the running statistics, which the forward
    has changed already, are restored.

    A CPU answers at once. On a GPU an answer would make the host wait for the device in every update. So the verdict
    stays on the device. A fused optimiser takes it and skips the update there, as it does for fp16's scaler, and
    `settle` reads all verdicts since its last call. For an optimiser that cannot do that, the host waits.

    Verdicts are read after so many updates, and not after so many seconds, because several processes have to stop at
    the same update.

    Gradients in fp16 are left to the scaler: now and then they overflow, and it skips those updates itself.

    Attributes:
        verdict: of the last update that was allowed: bool (), on the device, or None if the host has read it.
    """

    def __init__(
        self,
        model: nn.Module,
        average: Average | None,
        on_nonfinite: str,
        manifest: Manifest,
        folder: Path,
        accelerator: Accelerator,
    ) -> None:
        self._model, self._average, self._manifest, self._accelerator = model, average, manifest, accelerator
        self._path, self._skips = folder / FILE, on_nonfinite == "skip"
        self._state: dict[str, Any] = {"skipped": 0, "in_a_row": 0, "rows": []}
        self._losses: list[Tensor] = []
        self._indices: list[Tensor] = []
        self._buffers = [buffer.clone() for buffer in model.buffers()] if self._skips else []
        self._unread: list[_Verdict] = []
        self.verdict: Tensor | None = None

    @property
    def skipped(self) -> int:
        return self._state["skipped"]

    def before_forward(self) -> None:
        """Copies the running statistics before an update's first batch."""
        if self._skips and not self._losses:
            copy(self._buffers, list(self._model.buffers()))

    def add(self, loss: Tensor, index: Tensor) -> None:
        """Notes a batch's loss, shape (), and its clips' places in the manifest, int64 (N,)."""
        self._losses.append(loss.detach())
        self._indices.append(index)

    def allows(self, epoch: int, step: int, optimizer: torch.optim.Optimizer) -> bool:
        """Whether the update of the batches since the last call may be made.

        It is always True where a fused optimiser on a GPU is told to skip the update itself. Every process has to call
        it. In every 20th call at least, the host reads the verdicts so far.

        Raises:
            WorkError: as for `settle`.
        """
        losses, indices = torch.stack(self._losses), torch.cat(self._indices)
        self._losses, self._indices = [], []
        gradient = losses.new_zeros(()) if self._accelerator.scaler else gradient_norm(self._model, losses)
        good = torch.isfinite(losses).all() & torch.isfinite(gradient)
        if self._accelerator.num_processes > 1:
            good = self._accelerator.reduce(good.float(), "sum") == self._accelerator.num_processes
        self._unread.append(_Verdict(epoch, step, good, losses.sum(), gradient, indices))
        if self._answers_on_device(optimizer):
            for buffer, kept in zip(self._model.buffers(), self._buffers, strict=False):  # none are kept to stop
                buffer.copy_(torch.where(good, buffer, kept))
            optimizer = getattr(optimizer, "optimizer", optimizer)  # accelerate's wrapper
            optimizer.grad_scale, optimizer.found_inf = None, (~good).float()
            self.verdict = good
            if len(self._unread) == _UNREAD:
                self.settle()
            return True
        self.verdict = None
        before = self.skipped
        self.settle()
        if self.skipped == before:
            return True
        copy(list(self._model.buffers()), self._buffers)
        return False

    def _answers_on_device(self, optimizer: torch.optim.Optimizer) -> bool:
        """Not before the optimiser has its state, which torch makes without values in an update that is skipped; nor
        before an average has begun."""
        groups = optimizer.param_groups
        if self._accelerator.device.type != "cuda" or self._accelerator.scaler:
            return False
        if self._average is not None and not self._average.begun:
            return False
        moving = [parameter for group in groups for parameter in group["params"] if parameter.grad is not None]
        return all(group.get("fused") for group in groups) and all(moved in optimizer.state for moved in moving)

    def settle(self) -> None:
        """Reads the verdicts on the updates since the last call, and writes down those that were not made.

        Every process has to call it. On a GPU the host waits here for the device.

        Raises:
            WorkError: if one was not made and train.on_nonfinite=stop, or if too many in a row were not made.
        """
        unread, self._unread = self._unread, []
        allowed = torch.stack([verdict.good for verdict in unread]).tolist() if unread else []
        for verdict, good in zip(unread, allowed, strict=True):
            if good:
                self._state["in_a_row"] = 0
            else:
                self._refuse(verdict)

    def _refuse(self, verdict: _Verdict) -> None:
        loss, gradient = verdict.loss.item(), verdict.gradient.item()
        self._write(verdict.epoch, verdict.step, loss, gradient, verdict.indices)
        what = f"the gradient's norm is {gradient}" if math.isfinite(loss) else f"the loss is {loss}"
        where = f"{what} in epoch {verdict.epoch} at step {verdict.step}"
        remedy = "try a lower optim.lr, a longer optim.warmup_epochs, or optim.clip_grad_norm=1"
        if not self._skips:
            raise WorkError(
                f"{where}; {remedy}, or train.on_nonfinite=skip; the files of the batch are in {self._path}"
            )
        self._state["skipped"] += 1
        self._state["in_a_row"] += 1
        if self._state["in_a_row"] == _MOST:
            raise WorkError(f"{where}, the {_MOST}th update in a row that was skipped; {remedy}")

    def stepped(self, skipped: bool) -> None:
        """Notes whether fp16's scaler skipped the update that was allowed; it halves its scale then.

        Raises:
            WorkError: if it skipped so many in a row that the scale is not the cause.
        """
        overflows = self._state.pop("overflows", 0)
        if not skipped:
            return
        self._state["overflows"] = overflows + 1
        if overflows + 1 == _MOST:
            raise WorkError(
                f"gradients in fp16 were not finite in {_MOST} updates in a row, whatever they are scaled by; try "
                "train.precision=bf16, a lower optim.lr, or a longer optim.warmup_epochs"
            )

    def _write(self, epoch: int, step: int, loss: float, gradient: float, indices: Tensor) -> None:
        # with train.repeats, a file may come several times
        paths = [self._manifest.clips[index].path for index in dict.fromkeys(indices.tolist())]
        rows = [[epoch, step, f"{loss:g}", path, f"{gradient:g}"] for path in paths]
        rows = gather_object(rows) if self._accelerator.num_processes > 1 else rows
        self._state["rows"] += rows
        if self._accelerator.is_main_process:
            write_csv(self._path, [["epoch", "step", "loss", "path", "gradient_norm"], *self._state["rows"]])

    def state_dict(self) -> dict[str, Any]:
        return self._state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._state |= state


def gradient_norm(model: nn.Module, like: Tensor) -> Tensor:
    """Returns the Euclidean norm of this process's gradients or shards: float32 (), on the device of `like`.

    The host does not wait for the device.
    """
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    local = [gradient.to_local() if hasattr(gradient, "to_local") else gradient for gradient in gradients]
    local = [gradient for gradient in local if gradient.numel()]
    if not local:
        return like.new_zeros(())
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(local)).float())
