"""The operator inside torch: opcheck, compile, export, vmap, func, autocast, subclasses, and life without a library."""

import copy
import io
import subprocess
import sys
import warnings

import pytest
import torch
from torch import nn

import softpool3d
from softpool3d.ops import library
from softpool3d.ops.fallback import adaptive_soft_pool3d_fallback, soft_pool3d_fallback
from softpool3d.ops.reference import adaptive_soft_pool3d_reference, soft_pool3d_reference

OP = torch.ops.softpool3d
POOL = ([3, 3, 3], [2, 2, 2], [1, 1, 1], [1, 1, 1], False)


def input_of(layout="contiguous", shape=(2, 3, 4, 6, 9), dtype=torch.float32):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    if layout == "channels_last":
        return x.contiguous(memory_format=torch.channels_last_3d)
    return x[..., ::2] if layout == "sliced" else x


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
@pytest.mark.parametrize("betas", [None, torch.tensor([0.5, 1.0, -2.0])], ids=["float", "tensor"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_opcheck(layout, betas, dtype):
    """Schema, fake kernels (shapes, strides, types), autograd registration and AOTAutograd, forward and backward."""
    x = input_of(layout, dtype=dtype).requires_grad_()
    if betas is not None:
        betas = betas.clone().requires_grad_()
    torch.library.opcheck(OP.soft_pool3d, (x, betas, 1.0, *POOL))
    torch.library.opcheck(OP.adaptive_soft_pool3d, (x, betas, 1.0, [1, 2, 3]))
    y, z = OP.soft_pool3d(x, betas, 1.0, *POOL), OP.adaptive_soft_pool3d(x, betas, 1.0, [1, 2, 3])
    # AOTAutograd does not take second derivatives of any operator, so these are checked without.
    x, betas = x.detach(), None if betas is None else betas.detach()
    for wanted in [(True, False)] if betas is None else [(True, True), (True, False), (False, True)]:
        torch.library.opcheck(OP.soft_pool3d_backward, (torch.ones_like(y), x, betas, 1.0, *POOL, *wanted))
        torch.library.opcheck(OP.adaptive_soft_pool3d_backward, (torch.ones_like(z), x, betas, 1.0, [1, 2, 3], *wanted))


class Net(nn.Module):
    def __init__(self, beta=1.0):
        super().__init__()
        self.conv = nn.Conv3d(3, 5, 3, padding=1)
        self.pool = softpool3d.SoftPool3d(3, 2, 1, beta=beta, num_channels=5 if beta == "learnable" else None)
        self.head = softpool3d.AdaptiveSoftPool3d(1)

    def forward(self, x):
        return self.head(self.pool(self.conv(x)).relu()).flatten(1)


@pytest.mark.parametrize("beta", [1.0, "learnable"])
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_compile_without_a_graph_break(backend, dynamic, beta):
    torch._dynamo.reset()
    torch.manual_seed(0)
    net = Net(beta)
    compiled = torch.compile(copy.deepcopy(net), fullgraph=True, backend=backend, dynamic=dynamic)
    for shape in [(2, 3, 4, 6, 8), (1, 3, 6, 9, 7)] if dynamic else [(2, 3, 4, 6, 8)]:
        for layout in ("contiguous", "channels_last"):
            x = input_of(layout, shape)
            a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
            expected, got = net(a), compiled(b)
            torch.testing.assert_close(got, expected)
            expected.square().sum().backward()
            got.square().sum().backward()
            torch.testing.assert_close(b.grad, a.grad)
    for p, q in zip(net.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad)


@pytest.mark.parametrize("strict", [False, True])
def test_export_and_reload(strict):
    net, x = Net("learnable").eval(), input_of()
    time, height = torch.export.Dim("time", min=3, max=64), torch.export.Dim("height", min=3, max=256)
    program = torch.export.export(net, (x,), dynamic_shapes=({2: time, 3: height},), strict=strict)
    assert any("softpool3d.soft_pool3d" in str(node.target) for node in program.graph.nodes)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    reloaded = torch.export.load(file).module()
    for shape in [(2, 3, 4, 6, 9), (2, 3, 7, 11, 9)]:
        x = input_of(shape=shape)
        torch.testing.assert_close(reloaded(x), net(x))


def pools():
    yield pytest.param(lambda x, b: softpool3d.soft_pool3d(x, 3, 2, 1, beta=b), id="pool")
    yield pytest.param(lambda x, b: softpool3d.adaptive_soft_pool3d(x, (1, 2, 3), b), id="adaptive")


@pytest.mark.parametrize("pool", list(pools()))
@pytest.mark.parametrize("in_dims", [(0, None), (2, None), (0, 0), (1, 1), (None, 0)], ids=str)
def test_vmap(pool, in_dims):
    samples = 4

    def tensor(shape, dim):
        return torch.rand(shape if dim is None else [*shape[:dim], samples, *shape[dim:]]) + 0.5

    x, beta = tensor([2, 3, 5, 6, 8], in_dims[0]), tensor([3], in_dims[1])
    got = torch.vmap(pool, in_dims)(x, beta)

    def pick(t, dim, i):
        return t if dim is None else t.select(dim, i)

    expected = torch.stack([pool(pick(x, in_dims[0], i), pick(beta, in_dims[1], i)) for i in range(samples)])
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("pool", list(pools()))
def test_per_sample_gradients(pool):
    """vmap over grad, in x and in beta: what influence functions and differential privacy do."""
    x, beta = torch.randn(4, 2, 3, 5, 6, 8), torch.tensor([0.5, 1.0, 2.0])

    def loss(x, beta):
        return pool(x, beta).square().sum()

    got = torch.vmap(torch.func.grad(loss, argnums=(0, 1)), (0, None))(x, beta)
    for i in range(4):
        expected = torch.func.grad(loss, argnums=(0, 1))(x[i], beta)
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a[i], b, rtol=1e-4, atol=1e-4)
    fixed = torch.vmap(torch.func.grad(lambda t: loss(t, 1.0)))(x)
    torch.testing.assert_close(fixed[1], torch.func.grad(lambda t: loss(t, 1.0))(x[1]))


def test_jacobian_and_hessian():
    x = torch.randn(1, 1, 1, 2, 4, dtype=torch.float64)

    def plain(t):
        return (t.softmax(-1) * t).sum(-1)

    def pool(t):
        return softpool3d.soft_pool3d(t, (1, 1, 4)).squeeze(-1)

    torch.testing.assert_close(torch.func.jacrev(pool)(x), torch.func.jacrev(plain)(x))
    ours = torch.autograd.functional.hessian(lambda t: pool(t).sum(), x)
    torch.testing.assert_close(ours, torch.autograd.functional.hessian(lambda t: plain(t).sum(), x))


FORWARD_MODE = {
    "windows": lambda x, beta: softpool3d.soft_pool3d(x, 3, 2, 1, beta=beta),
    "bins": lambda x, beta: softpool3d.adaptive_soft_pool3d(x, (1, 2, 2), beta),
}


@pytest.mark.parametrize("pool", FORWARD_MODE.values(), ids=FORWARD_MODE)
def test_forward_mode(pool):
    """Tangents of input and beta, which torch drops in silence where an operator has no rule for them."""
    x = input_of(shape=(1, 2, 2, 4, 5), dtype=torch.float64)
    beta = torch.tensor([0.5, 1.5], dtype=torch.float64)
    direction = torch.randn_like(x)
    step = 1e-6
    expected = (pool(x + step * direction, beta) - pool(x - step * direction, beta)) / (2 * step)
    with torch.autograd.forward_ad.dual_level():
        y = pool(torch.autograd.forward_ad.make_dual(x, direction), beta)
        tangent = torch.autograd.forward_ad.unpack_dual(y).tangent
    torch.testing.assert_close(tangent, expected, atol=1e-8, rtol=1e-6)
    got = torch.func.jvp(lambda x: pool(x, beta), (x,), (direction,))[1]
    torch.testing.assert_close(got, expected, atol=1e-8, rtol=1e-6)
    by_rows = torch.func.jacrev(pool, argnums=1)(x, beta)
    torch.testing.assert_close(torch.func.jacfwd(pool, argnums=1)(x, beta), by_rows)
    inputs = x.requires_grad_(), beta.requires_grad_()
    assert torch.autograd.gradcheck(pool, inputs, check_forward_ad=True, check_batched_forward_grad=True)


def test_functional_call():
    net, x = Net("learnable"), input_of()
    state = {name: torch.rand_like(p) for name, p in net.named_parameters()}
    got = torch.func.functional_call(net, state, (x,))
    net.load_state_dict(state)
    torch.testing.assert_close(got, net(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_autocast_leaves_the_type_alone(dtype):
    x = input_of(dtype=dtype)
    for beta in (1.0, torch.tensor([0.5, 1.0, 2.0])):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = softpool3d.soft_pool3d(x, beta=beta)
        assert y.dtype == dtype and torch.equal(y, softpool3d.soft_pool3d(x, beta=beta))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = Net("learnable")(input_of()).float().sum()
    loss.backward()  # the convolution runs in bfloat16 and hands its output on as it is


class Wrapped(torch.Tensor):
    """A subclass with a dispatch of its own, which counts and refuses what is not torch's."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, inner.stride(), dtype=inner.dtype)

    def __init__(self, inner):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        assert function.namespace in ("aten", "prim"), f"{function} is not torch's"

        def unwrap(t):
            return t.inner if isinstance(t, cls) else t

        def wrap(t):
            return cls(t) if isinstance(t, torch.Tensor) else t

        args, kwargs = torch.utils._pytree.tree_map(unwrap, (args, kwargs or {}))
        return torch.utils._pytree.tree_map(wrap, function(*args, **kwargs))


class Named(torch.Tensor):
    """A subclass that only adds a name, like torchvision's tv_tensors."""


def test_subclasses():
    x = input_of()
    y = softpool3d.soft_pool3d(x)
    assert softpool3d.backend(x) == "cpu" and softpool3d.backend(nn.Parameter(x)) == "cpu"
    assert softpool3d.backend(x.as_subclass(Named)) == "cpu"
    assert torch.equal(softpool3d.soft_pool3d(x.as_subclass(Named)), y)
    wrapped = Wrapped(x)
    assert softpool3d.backend(wrapped) == "reference"
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing is missing, so there is nothing to warn of
        result = softpool3d.soft_pool3d(wrapped)
    assert isinstance(result, Wrapped)
    torch.testing.assert_close(result.inner, y)


def test_meta():
    x = torch.empty(2, 3, 4, 6, 8, device="meta")
    assert softpool3d.soft_pool3d(x).shape == (2, 3, 2, 3, 4)
    assert softpool3d.adaptive_soft_pool3d(x, 1).shape == (2, 3, 1, 1, 1)


def without_library(monkeypatch, kind="cpu", why="not built"):
    info = copy.deepcopy(library.build_info())
    info[kind].update(loaded=False, why=why, remedy="build it")
    monkeypatch.setattr(library, "build_info", lambda: info)
    library.warn_of_reference.cache_clear()


def test_without_a_library_the_reference_runs_after_one_warning(monkeypatch):
    x, betas = input_of(), torch.tensor([0.5, 1.0, 2.0])
    expected = softpool3d.soft_pool3d(x, 3, 2, 1), softpool3d.adaptive_soft_pool3d(x, 2, betas)
    without_library(monkeypatch)
    assert softpool3d.backend(x) == "reference"
    with pytest.warns(UserWarning, match="no compiled library for cpu .not built.*build it") as caught:
        got = softpool3d.soft_pool3d(x, 3, 2, 1), softpool3d.adaptive_soft_pool3d(x, 2, betas)
        softpool3d.soft_pool1d(x[0, 0, 0])
    assert len(caught) == 1 and caught[0].filename == __file__
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b)
    library.warn_of_reference.cache_clear()


def test_a_gpu_without_its_library_is_told_how_to_get_it(monkeypatch):
    without_library(monkeypatch, "cuda", "not built")
    monkeypatch.setitem(library.build_info()["cuda"], "remedy", library.CUDA_REMEDY)
    with pytest.warns(UserWarning, match="no compiled library for cuda .not built.*SOFTPOOL3D_CUDA=1 pip") as caught:
        for _ in range(3):
            library.warn_of_reference("cuda")
            library.warn_of_reference("mps")  # no library exists for it: nothing to mend, nothing to say
    assert len(caught) == 1
    library.warn_of_reference.cache_clear()


def test_without_a_library_networks_train_and_compile(monkeypatch):
    net, x = Net("learnable"), input_of()
    expected = torch.autograd.grad(net(x).square().sum(), list(net.parameters()))
    without_library(monkeypatch)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        got = torch.autograd.grad(net(x).square().sum(), list(net.parameters()))
        torch._dynamo.reset()
        compiled = torch.compile(net, backend="aot_eager")(x)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(compiled, net(x))
    torch._dynamo.reset()
    library.warn_of_reference.cache_clear()


def test_importing_costs_no_torch():
    code = (
        "import sys, softpool3d as s; assert 'torch' not in sys.modules; s.soft_pool3d; assert 'torch' in sys.modules; "
        "assert 'soft_pool3d' in vars(s)"  # the next call finds it without a search
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_references_agree_with_the_operator_in_every_direction():
    """The double backward is the fallback's: its first derivatives have to be the kernels'."""
    x, betas = (
        input_of(dtype=torch.float64).requires_grad_(),
        torch.tensor([0.5, 1.0, -2.0]).double().requires_grad_(),
    )
    for op, plain, geometry in [
        (OP.soft_pool3d, soft_pool3d_reference, POOL),
        (OP.soft_pool3d, soft_pool3d_fallback, POOL),
        (OP.adaptive_soft_pool3d, adaptive_soft_pool3d_reference, ([1, 4, 3],)),
        (OP.adaptive_soft_pool3d, adaptive_soft_pool3d_fallback, ([1, 4, 3],)),
    ]:
        ours, theirs = op(x, betas, 1.0, *geometry), plain(x, *geometry, betas)
        torch.testing.assert_close(ours, theirs)
        g = torch.randn_like(ours)
        for a, b in zip(
            torch.autograd.grad(ours, (x, betas), g), torch.autograd.grad(theirs, (x, betas), g), strict=True
        ):
            torch.testing.assert_close(a, b)


def test_subclasses_get_their_own_type_back():
    """As from torch's functions."""
    x = input_of().as_subclass(Named)
    assert type(softpool3d.soft_pool3d(x)) is Named and type(softpool3d.adaptive_soft_pool3d(x, 1)) is Named


@pytest.mark.parametrize("pool", list(pools()))
def test_second_derivatives_without_a_library(monkeypatch, pool):
    x, beta = input_of(shape=(1, 2, 2, 4, 5), dtype=torch.float64), torch.tensor([0.5, -1.5], dtype=torch.float64)
    without_library(monkeypatch)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        inputs = x.requires_grad_(), beta.requires_grad_()
        assert torch.autograd.gradcheck(pool, inputs, check_forward_ad=True, check_batched_grad=True)
        assert torch.autograd.gradgradcheck(pool, inputs, check_fwd_over_rev=True)
        assert torch.autograd.gradgradcheck(pool, (x, torch.zeros(2).double().requires_grad_()))
    library.warn_of_reference.cache_clear()
