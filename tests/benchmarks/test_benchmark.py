"""benchmarks/: that they measure what they say, and save no more than their own section."""

import re
import sys

import model
import op
import overhead
import pytest
import shared
import torch
import typer
from typer.testing import CliRunner

from softpool3d.analysis import measuring
from softpool3d.errors import UsageError

CPU = torch.device("cpu")


def invoke(measure, *arguments):
    """A benchmark, as its command line runs it."""
    app = typer.Typer()
    app.command()(measure)
    return CliRunner().invoke(app, arguments)


def test_contenders_take_turns():
    order = []
    calls = {name: lambda name=name: order.append(name) for name in "abc"}
    times = measuring.interleaved(calls, CPU, seconds=0.0, rounds=(4, 9))
    assert order[:6] == list("aabbcc")  # the warm-up, and whether it is too slow for rounds
    assert order[6:] == list("abc" + "bca" + "cab" + "abc")
    assert {timing.rounds for timing in times.values()} == {4}


def test_a_slow_contender_is_timed_once(monkeypatch):
    calls, now = [], [0.0]
    monkeypatch.setattr(measuring.time, "perf_counter", lambda: now[0])

    def taking(name, seconds):
        def call():
            calls.append(name)
            now[0] += seconds

        return call

    contenders = {"slow": taking("slow", 0.5), "fast": taking("fast", 0.25)}
    times = measuring.interleaved(contenders, CPU, seconds=0.4, rounds=(3, 5))
    assert calls == ["slow"] * 2 + ["fast"] * 5
    assert times == {"slow": measuring.Timing(0.5, 0.5, 0.5, 1), "fast": measuring.Timing(0.25, 0.25, 0.25, 3)}
    assert list(measuring.interleaved({"slow": contenders["slow"]}, CPU, seconds=0.4)) == ["slow"]


def test_rounds_end_when_there_are_enough_of_them():
    times = measuring.interleaved({"a": lambda: None}, CPU, seconds=60.0, rounds=(2, 7))
    assert times["a"].rounds == 7


def test_what_pytorch_does_not_implement_is_left_out_and_other_errors_are_not():
    x = torch.zeros(1, 1, 2, 2, 2, dtype=torch.complex64)
    calls = {"max": lambda: torch.nn.functional.max_pool3d(x, 2), "copy": lambda: x.clone()}
    assert list(measuring.interleaved(calls, CPU, seconds=0.0)) == ["copy"]
    with pytest.raises(RuntimeError, match="pad should be at most half"):
        measuring.interleaved({"bad": lambda: torch.nn.functional.max_pool3d(x.real, 2, padding=2)}, CPU)


def test_spread_is_that_of_the_quartiles():
    assert measuring.Timing(median=2.0, low=1.5, high=2.5, rounds=9).spread == 0.25


def test_peak_counts_what_lived_at_the_same_time():
    def call():
        first = torch.empty(1 << 20, dtype=torch.uint8)
        del first
        second = torch.empty(2 << 20, dtype=torch.uint8)
        third = torch.empty(3 << 20, dtype=torch.uint8)
        return second, third

    assert measuring.peak_bytes(call, CPU) == 5 << 20


def test_saving_replaces_its_own_section_only(tmp_path):
    document = tmp_path / "benchmarks.md"
    measuring.save_section("Operator on cpu", "first", document)
    measuring.save_section("Loader", "second\n\n### with a part\n", document)
    measuring.save_section("Operator on cpu", "third", document)
    text = document.read_text()
    assert text.startswith("# Benchmarks\n")
    assert re.findall(r"^## .*$", text, re.M) == ["## Operator on cpu", "## Loader"]
    assert "first" not in text and "third" in text and "### with a part" in text
    again = document.read_text()
    measuring.save_section("Operator on cpu", "third", document)
    assert document.read_text() == again


def test_saving_outside_a_source_tree_says_so(tmp_path):
    with pytest.raises(UsageError, match="source tree"):
        measuring.save_section("Operator on cpu", "", tmp_path / "nowhere" / "benchmarks.md")


def test_op_prints_and_saves_a_line_for_every_case(tmp_path, monkeypatch):
    document = tmp_path / "benchmarks.md"
    monkeypatch.setattr(measuring, "DOCUMENT", document)
    monkeypatch.setattr(op, "SHAPES", [(1, 2, 4, 6, 6)])
    arguments = ["--dtype", "float32", "--dtype", "bfloat16", "--without", "compiled"]
    result = invoke(op.measure_all, *arguments, "--seconds", "0", "--save")
    assert result.exit_code == 0, result.output
    lines = [line for line in document.read_text().splitlines() if line.startswith("| ")]
    header, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert header[4:] == ["ours", "avg", "max", "plain", "copy", "fill", "extra"]
    # five windows, two dtypes, two layouts, two passes
    assert len({tuple(row[:4]) for row in rows}) == len(rows) == 40
    for row in rows:
        assert re.fullmatch(r"[\d.e+-]+ ±\d+%", row[4]), row
        implemented = row[2] == "float32" or row[0] == "global"
        assert re.fullmatch(r"[\d.e+-]+ \([\d.]+x\)", row[5]) if implemented else row[5] == "-", row
        assert re.fullmatch(r"[\d.]+ MB", row[-1]), row


def test_quick_is_the_last_shape_and_two_kernels(tmp_path, monkeypatch):
    monkeypatch.setattr(measuring, "DOCUMENT", tmp_path / "benchmarks.md")
    monkeypatch.setattr(op, "SHAPES", [(1, 3, 4, 6, 6), (1, 2, 4, 4, 4)])
    result = invoke(op.measure_all, "--quick", "--without", "compiled", "--save")
    assert result.exit_code == 0, result.output
    text = (tmp_path / "benchmarks.md").read_text()
    assert re.findall(r"^### (.*)$", text, re.M) == ["(1, 2, 4, 4, 4)"]
    assert len(re.findall(r"^\| .* \| float32 \|", text, re.M)) == 2 * 2 * 2


def test_overhead_prints_and_saves_what_a_call_costs(tmp_path, monkeypatch):
    document = tmp_path / "benchmarks.md"
    monkeypatch.setattr(measuring, "DOCUMENT", document)
    result = invoke(overhead.measure, "--seconds", "0", "--save")
    assert result.exit_code == 0, result.output
    rows = [line for line in document.read_text().splitlines() if line.startswith("| ")]
    assert [row.split(" | ")[0] for row in rows[1:4]] == ["| without gradients", "| forward", "| with backward"]
    assert all(re.search(r"\| [0-9.]+ ±[0-9]+% \| [0-9.]+ \([0-9.]+x\) \|", row) for row in rows[1:4])
    assert len(rows) == 4 + 5 and all(re.search(r" \| [0-9.]+ ±[0-9]+% \|$", row) for row in rows[5:])
    assert "## Price of a call on cpu" in document.read_text()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_a_device_is_an_error_of_one_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["op.py", "--device", "cuda"])
    with pytest.raises(SystemExit) as stopped:
        shared.run(op.measure_all)
    assert stopped.value.code == 2
    assert "no CUDA device" in capsys.readouterr().err


def test_models_against_their_own_pooling_and_their_library_s(tmp_path, monkeypatch):
    monkeypatch.setattr(model, "DOCUMENT", tmp_path / "benchmarks.md")
    arguments = ["x3d_xs", "slowfast_r50", "--frames", "4", "--crop", "32", "--batch", "2", "--seconds", "0"]
    result = invoke(model.measure, *arguments, "--save")
    assert result.exit_code == 0, result.output
    text = (tmp_path / "benchmarks-models.md").read_text()
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith(("| x3d", "| slowfast"))]
    labels = ["own", "library", "soft, existing", "soft, downsample", "soft, temporal (stage2)", "soft, head"]
    # SlowFast's slow pathway has one frame of four: no time to halve
    assert [line[2] for line in lines] == labels + [label for label in labels if "temporal" not in label]
    for line in lines:
        form = r"[\d.]+ (ms ±[\d.]+%|MiB)" if line[2] == "own" else r"\d+\.\d{3}x"
        assert all(re.fullmatch(form, cell) for cell in line[3:]), line


def test_library_networks_take_the_weights_of_ours():
    from softpool3d.models import create
    from softpool3d.models.registry import SPECS

    without = {"r3d_34", "r3d_50", "r3d_101", "resnext101_32x4d"}
    for name, spec in SPECS.items():
        with torch.device("meta"):
            theirs = model.library_network(name, (None if spec.is_image else 16, 64))
            ours = create(name, crop_size=64, num_frames=None if spec.is_image else 16)
        assert (theirs is None) == (name in without)
        if theirs is not None:
            assert theirs.state_dict().keys() == ours.state_dict().keys(), name


def test_a_page_names_no_folder_of_the_machine_that_measured(monkeypatch):
    words = ["--clips", "/data/real clips", "--seconds", "0.3", "../other/demo.mp4", "tests/own.mp4"]
    monkeypatch.setattr(sys, "argv", ["/home/one/benchmarks/loader.py", *words])
    written = "python benchmarks/loader.py --clips 'real clips' --seconds 0.3 demo.mp4 tests/own.mp4"
    assert shared.command() == written
