"""What a run shows in TensorBoard, and its scalars in other trackers (see trackers.py)."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import Tensor

from softpool3d.engine.plots import confusion_figure, png
from softpool3d.engine.scores import Scores
from softpool3d.engine.trackers import Trackers

_CLIPS = 4  # of a training batch, side by side
_FRAME_MS = 120


class Board:
    """Written by the first process alone; the others' is silent.

    Args:
        step: where the run goes on; what an interrupted run wrote of later steps gives way.
    """

    def __init__(self, folder: Path, accelerator: Accelerator, step: int, trackers: Trackers) -> None:
        self._trackers, self._writer = trackers, None
        if accelerator.is_main_process:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(folder), purge_step=step + 1 if step else None)

    def scalars(self, row: dict[str, Any]) -> None:
        """A row of metrics.csv."""
        values = {key: value for key, value in row.items() if key != "step" and value != ""}
        if self._writer:
            for key, value in values.items():
                self._writer.add_scalar(key, value, row["step"])
            self._writer.flush()
        self._trackers.log(values, row["step"])

    def clips(self, video: Tensor, step: int) -> None:
        """The first clips of a training batch, uint8 (N, C, T, H, W), as the network sees them, less normalisation."""
        if self._writer:
            side_by_side = video[:_CLIPS].permute(2, 3, 0, 4, 1).flatten(2, 3).cpu().numpy()  # (T, H, N * W, C)
            self._picture("training clips", _gif(side_by_side), side_by_side.shape[1:3], step)

    def confusion(self, scores: Scores, classes: tuple[str, ...], step: int) -> None:
        """Draws validation's confusion matrix; nothing where clips have several labels."""
        if self._writer and not scores.multi_label and len(scores.label):
            # torchmetrics imports matplotlib: half a second that the first step does not have to wait for
            from torchmetrics.functional.classification import multiclass_confusion_matrix

            matrix = multiclass_confusion_matrix(scores.probabilities, scores.label, len(classes))
            figure = confusion_figure(matrix, classes)
            width, height = figure.get_size_inches() * 110
            self._picture("confusion", png(figure), (int(height), int(width)), step)

    def __enter__(self) -> Board:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if self._writer and error is None:
            self._writer.close()
        self._trackers.close(finished=error is None)

    def _picture(self, name: str, content: bytes, size: tuple[int, int], step: int) -> None:
        # an encoded picture as it is: TensorBoard plays a GIF, which add_video would make by way of moviepy
        from tensorboard.compat.proto.summary_pb2 import Summary

        image = Summary.Image(height=size[0], width=size[1], colorspace=3, encoded_image_string=content)
        self._writer.file_writer.add_summary(Summary(value=[Summary.Value(tag=name, image=image)]), step)


def _gif(frames: Any) -> bytes:
    from PIL import Image

    first, *others = (Image.fromarray(frame) for frame in frames)
    content = io.BytesIO()
    first.save(content, "GIF", save_all=True, append_images=others, duration=_FRAME_MS, loop=0)
    return content.getvalue()
