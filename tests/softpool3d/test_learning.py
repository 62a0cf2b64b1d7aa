"""One run that really learns `motion`, in half of the recipe's epochs, of smaller clips: a minute of a core."""

import pytest

from softpool3d.config_file import load_config
from softpool3d.datasets import read_manifests
from softpool3d.datasets.sources.motion import CLASSES, opposite
from softpool3d.datasets.video.decoder import open_video
from softpool3d.inference.classifier import Classifier
from softpool3d.training.trainer import train


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> dict:
    small = ["model.width=12", "data.crop_size=48", "data.short_side=48", "data.train_short_side=[48,48]"]
    small += ["train.epochs=5", "test.num_clips=1", f"output={tmp_path_factory.mktemp('trained')}"]
    return train(load_config("r3d_softpool", small))


def test_the_label_is_in_the_motion(trained):
    """Test clips are told apart, and one played backwards is answered with the opposite class."""
    assert trained["test_top1"] >= 0.9  # of eight classes
    classifier = Classifier(trained["weights"])
    clips = read_manifests(classifier.config.data)["test"].clips
    right, opposed = 0, 0
    for clip in clips:
        with open_video(clip.path) as video:
            frames = video.frames(range(video.num_frames))
        label = CLASSES.index(classifier.classes[clip.label])
        right += classifier(frames)[0].name == CLASSES[label]
        opposed += classifier(frames.flip(0))[0].name == CLASSES[opposite(label)]
    assert right >= 0.9 * len(clips)
    assert opposed >= 0.9 * len(clips)
