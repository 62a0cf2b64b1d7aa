"""Batch norm over parts of a batch, over all processes, and its precise statistics."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
import torch.multiprocessing as mp
from accelerate import Accelerator
from torch import nn

from softpool3d.config import Config, TrainConfig
from softpool3d.datasets.multigrid import Multigrid
from softpool3d.training.norms import ProcessesBatchNorm, SplitBatchNorm, convert_norms, precise_statistics
from softpool3d.training.progress_report import header

CPU = torch.device("cpu")


def network(dtype=torch.float32):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv3d(1, 2, 1), nn.BatchNorm3d(2), nn.ReLU(), nn.Conv3d(2, 3, 1), nn.BatchNorm3d(3))
    return model.to(dtype)


def test_parts_of_a_batch_are_normalised_by_themselves():
    x = torch.randn(6, 1, 2, 3, 3)
    plain, split = network(), convert_norms(network(), TrainConfig(norm="split", norm_clips=3), CPU)
    assert isinstance(split[1], SplitBatchNorm) and list(split.state_dict()) == list(plain.state_dict())
    y = split(x)
    assert torch.allclose(y, torch.cat([plain(x[:3]), plain(x[3:])]), atol=1e-6)
    for (name, a), b in zip(plain.state_dict().items(), split.state_dict().values(), strict=True):
        assert torch.allclose(a.float(), b.float()), name
    assert torch.allclose(split.eval()(x), plain.eval()(x))


@pytest.mark.parametrize(("model", "idle"), [(nn.LayerNorm(2), True), (network(), False)])
def test_a_run_says_that_its_network_has_no_batch_norm(model, idle, tmp_path):
    config = Config.model_validate({"train": {"norm": "split", "precise_norm": 5}})
    said = header(config, tmp_path, convert_norms(model, config.train, CPU), CPU, Multigrid(), processes=1)
    for key in ("train.norm=split", "train.precise_norm=5"):
        assert (f"{key} has no effect: it belongs to networks with batch norm, and r3d_18 has none\n" in said) == idle


def test_norms_of_pictures_are_split_too():
    x = torch.randn(6, 3, 4, 4)
    plain, split = nn.BatchNorm2d(3), convert_norms(nn.Sequential(nn.BatchNorm2d(3)), TrainConfig(norm="split"), CPU)
    split[0].clips = 3
    assert isinstance(split[0], SplitBatchNorm)
    assert torch.allclose(split(x), torch.cat([plain(x[:3]), plain(x[3:])]), atol=1e-6)
    processes = convert_norms(nn.Sequential(nn.BatchNorm2d(3)), TrainConfig(norm="sync"), CPU)
    assert isinstance(processes[0], ProcessesBatchNorm)
    assert torch.allclose(processes(x), nn.BatchNorm2d(3)(x), atol=1e-6)


def _in_two_processes(rank, meeting, queue):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    model = convert_norms(network(torch.float64), TrainConfig(norm="sync"), CPU)
    assert isinstance(model[1], ProcessesBatchNorm)
    torch.manual_seed(1)
    x = torch.randn(5, 1, 2, 3, 3, dtype=torch.float64)
    mine = x[:2] if rank == 0 else x[2:]  # two clips and three
    (model(mine) ** 3).sum().backward()
    gradients = [p.grad for p in model.parameters()]
    for gradient in gradients:
        torch.distributed.all_reduce(gradient)
    if rank == 0:
        queue.put([t.detach().numpy() for t in (*gradients, *model.buffers())])
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def of_two_processes(work, meeting, *arguments):
    """The tensors that `work(rank, meeting, queue, *arguments)` of the first of two processes hands back."""
    context = mp.get_context("spawn")
    queue = context.SimpleQueue()
    processes = [context.Process(target=work, args=(rank, meeting, queue, *arguments)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    return [torch.from_numpy(array) for array in queue.get()]


def test_statistics_of_all_processes_are_those_of_the_whole_batch(tmp_path):
    found = of_two_processes(_in_two_processes, tmp_path / "meeting")
    model = network(torch.float64)
    torch.manual_seed(1)
    (model(torch.randn(5, 1, 2, 3, 3, dtype=torch.float64)) ** 3).sum().backward()
    for expected, value in zip([*(p.grad for p in model.parameters()), *model.buffers()], found, strict=True):
        torch.testing.assert_close(value, expected)


def test_precise_statistics_are_those_of_all_batches():
    model = nn.Sequential(nn.BatchNorm3d(1), nn.Dropout(0.5))
    batches = [torch.randn(4, 1, 2, 3, 3) * (n + 1) + n for n in range(3)]
    state = torch.get_rng_state()
    mean = model[0].running_mean
    precise_statistics(model, iter(batches), 3, Accelerator(cpu=True))
    assert torch.equal(torch.get_rng_state(), state) and model.training and model[0].running_mean is mean
    values = torch.cat(batches)
    torch.testing.assert_close(mean, values.mean().view(1))
    torch.testing.assert_close(model[0].running_var, values.var(unbiased=False).view(1))


@pytest.mark.parametrize("norm", ["batch", "split"])
def test_precise_statistics_are_those_of_the_clips_whatever_batches_are_split_into(norm):
    model = convert_norms(nn.Sequential(nn.BatchNorm3d(1)), TrainConfig(norm=norm, norm_clips=2), CPU)
    batches = [torch.randn(size, 1, 2, 3, 3) * size + 5 * size for size in (5, 2, 4)]
    precise_statistics(model, iter(batches), 3, Accelerator(cpu=True))
    values = torch.cat(batches)
    torch.testing.assert_close(model[0].running_mean, values.mean().view(1))
    torch.testing.assert_close(model[0].running_var, values.var(unbiased=False).view(1))


def _precise_in_two_processes(rank, meeting, queue, norm):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    model = convert_norms(network(), TrainConfig(norm=norm), CPU)
    mine = [batch[:2] if rank == 0 else batch[2:] for batch in few_clips()]  # two clips and three
    precise_statistics(model, iter(mine), 2, SimpleNamespace(reduce=_sum, autocast=nullcontext))
    if rank == 0:
        queue.put([buffer.numpy() for buffer in model.buffers()])
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def _sum(tensor, reduction):
    """Accelerator.reduce, which does nothing where torchrun has not started the processes."""
    assert reduction == "sum"
    tensor = tensor.clone()
    torch.distributed.all_reduce(tensor)
    return tensor


def few_clips():
    """Two batches of five, whose clips differ."""
    torch.manual_seed(1)
    return [torch.randn(5, 1, 1, 1, 1) + torch.arange(5.0).view(5, 1, 1, 1, 1) * n for n in (1, 2)]


@pytest.mark.parametrize("norm", ["batch", "sync"])
def test_precise_statistics_of_all_processes_are_those_of_all_clips(tmp_path, norm):
    """Of so few numbers that what each process has alone is seen: its share, and the mean of its own."""
    found = of_two_processes(_precise_in_two_processes, tmp_path / "meeting", norm)
    whole = few_clips()
    model = network()
    if norm == "batch":  # behind a norm that knows its own process alone, there are other numbers
        values = model[0](torch.cat(whole)).detach()
        torch.testing.assert_close(found[0], values.mean((0, 2, 3, 4)))
        torch.testing.assert_close(found[1], values.var((0, 2, 3, 4), unbiased=False))
        return
    precise_statistics(model, iter(whole), 2, Accelerator(cpu=True))
    for expected, value in zip(model.buffers(), found, strict=True):
        torch.testing.assert_close(value, expected)
