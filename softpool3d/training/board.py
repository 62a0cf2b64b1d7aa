"""Logs a run to TensorBoard, and to the trackers of train.trackers (Weights & Biases, MLflow, ...)."""

from __future__ import annotations

import io
import json
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import Tensor

from softpool3d.config import Config
from softpool3d.errors import UsageError, WorkError, first_line, os_reason
from softpool3d.evaluation.plots import confusion_figure, png
from softpool3d.evaluation.scores import Scores
from softpool3d.files import write_atomically
from softpool3d.requirements import version_of

TRACKERS_FILE = "trackers.json"  # in the run's folder: its ids in the trackers, where it goes on as the same run
_PATIENCE_S = 20.0  # how long a training waits for trackers at its start, and at its end
_PACKAGES = {"mlflow": ("mlflow", "mlflow-skinny")}
_CLIPS = 4  # of a training batch, side by side
_FRAME_MS = 120


class Board:
    """Writes to TensorBoard and the trackers, on the first process only.

    Args:
        step: where the run begins or resumes; what it wrote of later steps before an interruption is discarded.
    """

    def __init__(self, folder: Path, accelerator: Accelerator, step: int, trackers: Trackers) -> None:
        self._trackers, self._writer = trackers, None
        if accelerator.is_main_process:
            from torch.utils.tensorboard import SummaryWriter

            with _written_to(folder):
                self._writer = SummaryWriter(str(folder), purge_step=step + 1 if step else None)

    def scalars(self, row: dict[str, Any]) -> None:
        """Writes a row of metrics.csv."""
        values = {key: value for key, value in row.items() if key != "step" and value != ""}
        if self._writer:
            with _written_to(self._writer.log_dir):
                for key, value in values.items():
                    self._writer.add_scalar(key, value, row["step"])
                self._writer.flush()
        self._trackers.log(values, row["step"])

    def clips(self, video: Tensor, step: int) -> None:
        """Shows the first clips of a training batch, uint8 (N, C, T, H, W): augmented, not normalised."""
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
            with _written_to(self._writer.log_dir):
                self._writer.close()
        self._trackers.close(finished=error is None)

    def _picture(self, name: str, content: bytes, size: tuple[int, int], step: int) -> None:
        # an encoded picture as it is: TensorBoard plays a GIF, which add_video would make by way of moviepy
        from tensorboard.compat.proto.summary_pb2 import Summary

        image = Summary.Image(height=size[0], width=size[1], colorspace=3, encoded_image_string=content)
        with _written_to(self._writer.log_dir):
            self._writer.file_writer.add_summary(Summary(value=[Summary.Value(tag=name, image=image)]), step)


@contextmanager
def _written_to(folder: str | Path) -> Iterator[None]:
    """Makes a sentence of what goes wrong where TensorBoard writes, which it does in a thread of its own.

    Raises:
        WorkError: if its file cannot be written.
    """
    _quiet_about_tensorboard()
    try:
        yield
    except OSError as error:  # the thread's, too
        raise WorkError(f"cannot write TensorBoard's file in {folder}: {os_reason(error)}") from None


@cache
def _quiet_about_tensorboard() -> None:
    """Drops the traceback of TensorBoard's thread: its error is raised at the next call, and that would come first."""
    others = threading.excepthook

    def hook(failed: threading.ExceptHookArgs) -> None:
        if not type(failed.thread).__module__.startswith("tensorboard."):
            others(failed)

    threading.excepthook = hook


def _gif(frames: Any) -> bytes:
    from PIL import Image

    first, *others = (Image.fromarray(frame) for frame in frames)
    content = io.BytesIO()
    first.save(content, "GIF", save_all=True, append_images=others, duration=_FRAME_MS, loop=0)
    return content.getvalue()


def check_trackers(config: Config) -> None:
    """Checks that the trackers of train.trackers can be used.

    Raises:
        UsageError: for a tracker whose package is not installed.
    """
    for name in config.train.trackers:
        # not by looking for a module: any folder of that name would be one, and wandb leaves such folders
        if not any(map(_installed, _PACKAGES.get(name, (name,)))):
            raise UsageError(f"train.trackers: {name} is not installed here; pip install {name.replace('_', '-')}")


class Trackers:
    """The trackers of train.trackers; idle if there are none, and on every process but the first.

    They work in a thread of their own, so that a training never waits for their network.

    Args:
        say: prints a line.
    """

    def __init__(self, folder: Path, config: Config, accelerator: Accelerator, say: Callable[[str], None]) -> None:
        self._folder, self._config, self._accelerator, self._say = folder, config, accelerator, say
        self._name = f"train.trackers={','.join(config.train.trackers)}"
        self._jobs: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._failure: Exception | None = None
        self._has_started = threading.Event()
        self._works = False

    def start(self) -> None:
        """Starts the trackers; to be called on the first process only.

        Raises:
            WorkError: if one does not start for want of an account. For want of a network, the run goes on.
        """
        if not self._config.train.trackers:
            return
        self._works = True
        self._thread.start()
        if not self._has_started.wait(_PATIENCE_S):
            self._say(f"{self._name}: no answer for {_PATIENCE_S:g} s; the run goes on, and its rows wait for one")
        elif self._failure and not _may_pass(self._failure):
            raise WorkError(
                f"{self._name}: {first_line(self._failure)}; log in there, have it work offline (WANDB_MODE=offline), "
                "or leave it out with train.trackers=[]"
            ) from self._failure
        self._say_failure()

    def log(self, values: dict[str, Any], step: int) -> None:
        """Logs a row of scalars."""
        if self._works:
            self._say_failure()
            self._jobs.put(lambda: self._accelerator.log(values, step=step))

    def close(self, finished: bool) -> None:
        """Waits a little for rows that are still on their way.

        Args:
            finished: whether the run is finished, and does not only stop here.
        """
        if not self._works:
            return
        if finished:
            self._jobs.put(lambda: [tracker.finish() for tracker in self._accelerator.trackers])
        self._jobs.put(None)
        self._thread.join(_PATIENCE_S)
        self._say_failure()
        if self._works and self._thread.is_alive():
            self._say(f"{self._name}: no answer for {_PATIENCE_S:g} s; the last rows may be missing there")

    def _work(self) -> None:
        try:
            _start(self._folder, self._config, self._accelerator)
            self._has_started.set()
            while (job := self._jobs.get()) is not None:
                job()
        except Exception as error:  # each library has errors of its own
            self._failure = error
            self._has_started.set()

    def _say_failure(self) -> None:
        if self._works and self._failure:
            self._works = False
            self._say(f"{self._name}: {first_line(self._failure)}; the run goes on without, metrics.csv has its rows")


def _start(folder: Path, config: Config, accelerator: Accelerator) -> None:
    path = folder / TRACKERS_FILE
    ids = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    settings: dict[str, dict[str, Any]] = {
        "wandb": {"name": folder.name, "dir": str(folder)},
        "mlflow": {"run_name": folder.name},
        "clearml": {"task_name": folder.name},
    }
    for name, known in ids.items():
        key = {"wandb": "id", "mlflow": "run_id", "aim": "run_hash"}[name]
        settings[name] = settings.get(name, {}) | {key: known} | ({"resume": "allow"} if name == "wandb" else {})
    # values that trackers cannot store are logged as text
    plain = {k: v if isinstance(v, (int, float, str, bool)) else str(v) for k, v in config.flat().items()}
    accelerator.init_trackers("softpool3d", plain, settings)
    for tracker in accelerator.trackers:
        if tracker.name == "wandb":
            ids["wandb"] = tracker.tracker.id
        elif tracker.name == "mlflow":
            ids["mlflow"] = tracker.tracker.info.run_id
        elif tracker.name == "aim":
            ids["aim"] = tracker.tracker.hash
    if ids:
        write_atomically(path, json.dumps(ids).encode())


def _may_pass(error: BaseException | None) -> bool:
    """Whether an error comes from the network or a disk, and not from what the user asked for."""
    while error is not None:
        if isinstance(error, OSError) or type(error).__name__ == "CommError":  # wandb's
            return True
        error = error.__cause__ or error.__context__
    return False


def _installed(package: str) -> bool:
    return version_of(package) is not None
