"""benchmarks/kept.py and temperature.py: their arithmetic by hand, and their pages from small runs."""

import kept
import pytest
import temperature
import torch
import typer
from scores import write_data_set
from torch import nn
from typer.testing import CliRunner

from softpool3d import SoftPool3d
from softpool3d.analysis.folders import read_run
from softpool3d.config_file import load_config
from softpool3d.training.trainer import train

SMALL = ["model.width=4", "data.num_frames=4", "data.sampling_rate=1", "data.num_workers=0", "device=cpu"]
SMALL += ["data.short_side=32", "data.train_short_side=[32,32]", "data.crop_size=32", "data.dataset=folder"]
SMALL += ["train.epochs=1", "train.batch_size=4", "test.num_clips=1", "optim.warmup_epochs=0"]


def invoke(measure, *arguments):
    """A benchmark, as its command line runs it."""
    app = typer.Typer()
    app.command()(measure)
    return CliRunner().invoke(app, arguments)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("temperature")
    root = write_data_set(folder / "data", train=4, val=2, test=5)
    for name, pool in {"learned": ["soft", "learnable"], "max": ["max", "1"]}.items():
        kind, beta = pool
        own = [f"model.pool.kind={kind}", f"model.pool.beta={beta}", "model.pool.where=[downsample]"]
        own += [f"name={name}-seed0", f"output={folder / 'runs'}", f"data.root={root}"]
        train(load_config("r3d_softpool", [*SMALL, *own]))
    return folder / "runs"


def test_how_many_positions_weigh():
    x = torch.tensor([0.0, 0.0, 5.0, 5.0, 1.0, 2.0]).view(1, 1, 1, 1, 6)
    pool = SoftPool3d((1, 1, 2), beta=2.0)
    shares = torch.tensor([[0.0, 0.0], [5.0, 5.0], [1.0, 2.0]]).mul(2).softmax(1)
    torch.testing.assert_close(temperature._positions(pool, x).flatten(), 1 / shares.square().sum(1))
    assert temperature._positions(pool, x).flatten()[0] == 2
    learned = SoftPool3d(2, beta="learnable", num_channels=3, beta_start=1e-3)
    torch.testing.assert_close(
        temperature._positions(learned, torch.randn(2, 3, 4, 4, 4)), torch.full((2, 3, 2, 2, 2), 8.0), rtol=1e-3, atol=0
    )


def test_beta_in_place_of_max_pooling(runs):
    """A beta beyond all bounds is max pooling: it answers as the network that was trained with it."""
    record = read_run(runs / "max-seed0")
    assert temperature._top1(record, 1e6) == pytest.approx(record.test())


def test_the_page_of_temperatures(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(temperature, "PAGE", tmp_path / "temperature.md")
    monkeypatch.setattr(temperature, "FIGURE", tmp_path / "betas.png")
    result = invoke(temperature.measure, str(runs), "--save")
    assert result.exit_code == 0, result.output
    page = (tmp_path / "temperature.md").read_text()
    assert " | layer2.0.conv1.0 | " in page and " | layer2.0.conv1.0, of 8 | " in page and page.count("| run | ") == 3
    assert "| learned-seed0 | 1.0" in page
    assert "| max-seed0 | " in page and "beta 1024" in page
    assert (tmp_path / "betas.png").read_bytes().startswith(b"\x89PNG")
    assert "no finished run of seed 7" in str(invoke(temperature.measure, str(runs), "--seed", "7").exception)


def test_variance_that_a_linear_decoder_explains():
    """Maps that pooling keeps whole are restored; of noise an average keeps what the mean of eight values tells."""
    torch.manual_seed(0)
    constant = [nn.functional.interpolate(torch.randn(1, 4, 4, 4, 4), scale_factor=2)[0] for _ in range(4)]
    found = kept._explained(constant[:2], constant[2:])
    assert all(found[label] > 0.999 for label in ("avg", "max", "stride", "soft, beta 1"))
    noise = [torch.randn(4, 16, 16, 16) for _ in range(4)]
    found = kept._explained(noise[:2], noise[2:])
    assert found["avg"] == pytest.approx(1 / 8, abs=0.02) and found["stride"] == pytest.approx(1 / 8, abs=0.02)
    assert found["soft, beta 0"] == pytest.approx(found["avg"], abs=1e-6)
    assert found["soft, beta 64"] == pytest.approx(found["max"], abs=0.02)


def test_the_page_of_what_is_kept(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(kept, "PAGE", tmp_path / "kept.md")
    monkeypatch.setattr(kept, "FIGURE", tmp_path / "kept.png")
    arguments = [str(runs.parent / "data"), "--clips", "2", "--runs", str(runs / "max-seed0"), "--save"]
    result = invoke(kept.measure, *arguments)
    assert result.exit_code == 0, result.output
    page = (tmp_path / "kept.md").read_text()
    assert "| soft, beta 0 | " in page and "| stride | " in page and "## Feature maps of max-seed0" in page
    assert (tmp_path / "kept.png").read_bytes().startswith(b"\x89PNG")
