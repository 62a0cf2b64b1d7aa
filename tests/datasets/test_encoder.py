"""Pictures that are written as a video."""

import av
import numpy as np
import pytest
from charts import CELL, CHART, COLUMNS, ROWS, chart_picture, decoders, patches, write_chart

from softpool3d.datasets.video.decoder import open_video
from softpool3d.datasets.video.encoder import write_video
from softpool3d.inference.timeline import VideoTimeline
from softpool3d.inference.timeline_files import annotated_frames
from softpool3d.visual.output import write_sheet
from softpool3d.visual.sheet import Sheet, original_panel
from softpool3d.visual.source import read_source


@pytest.mark.parametrize("options", [{}, {"crf": 12}, {"gop": 1}])
@pytest.mark.parametrize("ending", ["mp4", "mkv", "avi", "mov"])
def test_pictures_come_back_in_their_colours_and_the_file_names_its_matrix(tmp_path, ending, options):
    path = tmp_path / f"a.{ending}"
    write_video(path, [chart_picture()] * 3, 25, **options)
    for name, decode in decoders().items():
        assert np.abs(patches(decode(path)) - CHART).max() <= 4, name
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
    assert frame.colorspace in (5, 6) and frame.color_range == 1  # BT.601, limited
    assert frame.color_primaries == frame.color_trc == 1  # BT.709


def test_an_odd_size_is_made_even_by_the_last_row_and_column(tmp_path):
    pictures = np.full((2, 47, 63, 3), 90, np.uint8)
    pictures[:, -1], pictures[:, :, -1] = 200, 200
    write_video(tmp_path / "a.mp4", pictures, 25)
    with open_video(tmp_path / "a.mp4") as video:
        picture = video.frames([1])[0].numpy()
    assert picture.shape == (3, 48, 64)
    assert (
        np.abs(picture[:, -2:].astype(int) - 200).mean() < 6 and np.abs(picture[:, :40, :40].astype(int) - 90).max() < 4
    )


def test_sheets_and_annotated_videos_show_the_colours_of_their_original(tmp_path):
    original = write_chart(tmp_path / "a.mp4", "BT.709", full_range=True, bits=10)
    source = read_source(original)
    write_sheet(tmp_path / "sheet.mp4", Sheet([[original_panel(source)]], source, ""))
    found = VideoTimeline(str(original), 0.08, ("x",), None, [], None, [])
    write_video(tmp_path / "annotated.mp4", annotated_frames(found), 25)
    for name, decode in decoders().items():
        sheet = decode(tmp_path / "sheet.mp4")[32 : 32 + ROWS * CELL, : COLUMNS * CELL]  # below its title
        for picture in (sheet, decode(tmp_path / "annotated.mp4")):
            assert np.abs(patches(picture) - CHART).max() <= 4, name
