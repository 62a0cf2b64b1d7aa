"""A chart of known colours, encoded from its exact values, and what three decoders see in a file."""

from __future__ import annotations

import subprocess
from fractions import Fraction
from pathlib import Path

import numpy as np

ROWS, COLUMNS, CELL = 3, 4, 32
GREYS = [(16, 16, 16), (60, 60, 60), (128, 128, 128), (235, 235, 235)]
CHART = np.array(
    # white, black, red, green; blue, yellow, cyan, magenta
    [(255, 255, 255), (0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 255, 255), (255, 0, 255)]
    + GREYS
).reshape(ROWS, COLUMNS, 3)

# (red's and blue's share of the luma, code of the matrix, of the primaries, of the transfer): ITU-T H.273
STANDARDS = {
    "BT.601": (0.299, 0.114, 6, 6, 6),
    "BT.709": (0.2126, 0.0722, 1, 1, 1),
    "BT.2020": (0.2627, 0.0593, 9, 9, 14),
    "YCgCo": (0.299, 0.114, 8, 1, 1),  # only by its name: to be refused
}
FORMULAS = ("BT.601", "BT.709", "BT.2020")


def chart_picture() -> np.ndarray:
    """The chart: uint8 (96, 128, 3)."""
    return _cells(CHART, CELL).astype(np.uint8)


def patches(picture: np.ndarray, rows: int = ROWS, columns: int = COLUMNS) -> np.ndarray:
    """The mean colour of the middle of each patch of a picture: (rows, columns, 3)."""
    height, width = picture.shape[0] // rows, picture.shape[1] // columns
    cut = picture[: rows * height, : columns * width].reshape(rows, height, columns, width, 3)
    return cut[:, height // 4 : -height // 4, :, width // 4 : -width // 4].mean(axis=(1, 3))


def write_chart(
    path: Path, standard: str, full_range: bool = False, bits: int = 8, tagged: bool = True, codec: str = "libx264"
) -> Path:
    """The chart without loss, two frames of it, by the formulas of the standard and not by a library's."""
    import av

    pix_fmt = "yuv420p" if bits == 8 else f"yuv420p{bits}le"
    planes = _planes(standard, full_range, bits)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = COLUMNS * CELL, ROWS * CELL, pix_fmt
        stream.options = {"qp": "0"}
        if tagged:
            _, _, matrix, primaries, transfer = STANDARDS[standard]
            context = stream.codec_context
            context.colorspace, context.color_range = matrix, 2 if full_range else 1
            context.color_primaries, context.color_trc = primaries, transfer
        for number in range(2):
            frame = av.VideoFrame(stream.width, stream.height, pix_fmt)
            for plane, values in zip(frame.planes, planes, strict=True):
                values = values.astype("<u2" if bits > 8 else np.uint8)
                rows = values.view(np.uint8).reshape(len(values), -1)
                plane.update(np.pad(rows, ((0, 0), (0, plane.line_size - rows.shape[1]))))
            frame.pts, frame.time_base = number, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def decoders() -> dict:
    """Name -> function from a path to its first picture: our reader, FFmpeg's libraries, FFmpeg if it is installed."""
    import shutil

    known = {"our reader": by_our_reader, "FFmpeg's filters": by_filters}
    return known | ({"ffmpeg": by_ffmpeg} if shutil.which("ffmpeg") else {})


def by_our_reader(path: str | Path) -> np.ndarray:
    from softpool3d.datasets.video.decoder import open_video

    with open_video(path) as video:
        return video.frames([0])[0].permute(1, 2, 0).numpy()


def by_filters(path: str | Path) -> np.ndarray:
    """The first picture, as it is stored, through the filter that the command `ffmpeg` converts with."""
    import av

    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frame = next(container.decode(stream))
        graph = av.filter.Graph()
        source = graph.add_buffer(
            width=frame.width, height=frame.height, format=frame.format, time_base=stream.time_base
        )
        graph.link_nodes(source, graph.add("scale"), graph.add("format", "rgb24"), graph.add("buffersink")).configure()
        graph.push(frame)
        return graph.pull().to_ndarray()


def by_ffmpeg(path: str | Path) -> np.ndarray:
    import av

    with av.open(str(path)) as container:
        width, height = container.streams.video[0].width, container.streams.video[0].height
    command = ["ffmpeg", "-v", "error", "-noautorotate", "-i", str(path), "-frames:v", "1"]
    raw = subprocess.run([*command, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"], capture_output=True, check=True)
    return np.frombuffer(raw.stdout, np.uint8).reshape(height, width, 3)


def _planes(standard: str, full_range: bool, bits: int) -> list[np.ndarray]:
    red, blue = STANDARDS[standard][:2]
    colour = CHART / 255
    luma = colour @ [red, 1 - red - blue, blue]
    chroma = [(colour[..., 2] - luma) / (2 - 2 * blue), (colour[..., 0] - luma) / (2 - 2 * red)]
    scale, most = 2 ** (bits - 8), 2**bits - 1
    if full_range:
        values = [luma * most, *(c * most + 128 * scale for c in chroma)]
    else:
        values = [(16 + 219 * luma) * scale, *((128 + 224 * c) * scale for c in chroma)]
    sizes = (CELL, CELL // 2, CELL // 2)
    return [_cells(np.clip(np.rint(v), 0, most), size) for v, size in zip(values, sizes, strict=True)]


def _cells(values: np.ndarray, size: int) -> np.ndarray:
    return values.repeat(size, axis=0).repeat(size, axis=1)
