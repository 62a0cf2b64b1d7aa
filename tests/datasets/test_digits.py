"""`digits`: pictures that come inside of scikit-learn, written once and read as any others."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest

from softpool3d.config import DataConfig
from softpool3d.datasets import read_manifests
from softpool3d.datasets.overview import overview
from softpool3d.datasets.video.decoder import open_video
from softpool3d.errors import UsageError

DATA = DataConfig(dataset="digits", num_frames=1, split=[0.2, 0.3, 0.5])


@pytest.fixture
def few(monkeypatch, tmp_path):
    """In scikit-learn's place ten pictures of each digit: its value in all pixels, from 0 to 16."""
    asked = []

    def load_digits():
        asked.append(1)
        target = np.arange(100) % 10
        return SimpleNamespace(images=np.ones((100, 8, 8)) * target[:, None, None], target=target)

    monkeypatch.setenv("SOFTPOOL3D_HOME", str(tmp_path))
    monkeypatch.setitem(sys.modules, "sklearn", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "sklearn.datasets", SimpleNamespace(load_digits=load_digits))
    return asked


def test_digits_are_written_once_and_divided_as_asked_for(few):
    manifests = read_manifests(DATA)
    assert manifests["train"].classes == tuple("0123456789")
    counts = {name: manifest.class_counts().tolist() for name, manifest in manifests.items()}
    assert counts == {"train": [2] * 10, "val": [3] * 10, "test": [5] * 10}
    [clip] = [clip for clip in manifests["val"].clips if clip.label == 4][:1]
    with open_video(clip.path) as video:
        assert video.frames([0]).unique().tolist() == [round(4 * 255 / 16)]
    assert read_manifests(DATA) == manifests and few == [1]
    assert read_manifests(DATA.model_copy(update={"split_seed": 1})) != manifests
    assert overview(manifests, DATA).lines == ("digits: 20 train, 30 val, 50 test clips, 10 classes (0, 1, 2, ...)",)


def test_without_scikit_learn_a_sentence_says_so(monkeypatch, tmp_path):
    monkeypatch.setenv("SOFTPOOL3D_HOME", str(tmp_path))
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(UsageError, match="data.dataset=digits needs scikit-learn .*; pip install scikit-learn"):
        read_manifests(DATA)
    assert not list(tmp_path.iterdir())


def test_scikit_learn_s_own(monkeypatch, tmp_path):
    pytest.importorskip("sklearn", reason="this machine has no scikit-learn")
    monkeypatch.setenv("SOFTPOOL3D_HOME", str(tmp_path))
    manifests = read_manifests(DATA)
    assert sum(map(len, manifests.values())) == 1797 and len(manifests["train"].classes) == 10
