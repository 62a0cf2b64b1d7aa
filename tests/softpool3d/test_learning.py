"""One run that really learns `motion`, in half of the recipe's epochs: one or two minutes of a core."""

import pytest

from softpool3d.config_file import load_config
from softpool3d.datasets import read_manifests
from softpool3d.datasets.sources.motion import CLASSES, opposite
from softpool3d.datasets.video.decoder import open_video
from softpool3d.inference.classifier import Classifier
from softpool3d.training.trainer import train


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> dict:
    return train(load_config("r3d_softpool", [f"output={tmp_path_factory.mktemp('trained')}", "train.epochs=5"]))


def test_the_label_is_in_the_motion(trained):
    """Test clips are told apart, and one played backwards is answered with the opposite class."""
    assert trained["test_top1"] >= 0.95
    classifier = Classifier(trained["weights"])
    clips = read_manifests(classifier.config.data)["test"].clips
    right, opposed = 0, 0
    for clip in clips:
        with open_video(clip.path) as video:
            frames = video.frames(range(video.num_frames))
        label = CLASSES.index(classifier.classes[clip.label])
        right += classifier(frames)[0].name == CLASSES[label]
        opposed += classifier(frames.flip(0))[0].name == CLASSES[opposite(label)]
    assert right >= 0.95 * len(clips)
    assert opposed >= 0.9 * len(clips)
