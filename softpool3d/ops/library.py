"""The compiled operators: finds and loads the libraries, and tells torch what it needs to know besides the kernels.

cuda_ext/register.cpp defines four operators: `soft_pool3d`, `adaptive_soft_pool3d` and their backwards. Here they get
fake kernels (shapes and layouts for torch.compile and torch.export), derivatives of first and second order, and vmap
rules. Autocast does not cast their inputs, and need not: half types are summed in float32, and the output has the
input's type.
"""

import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from torch.autograd import forward_ad

from softpool3d.ops import fallback, reference
from softpool3d.ops.fit import CUDA_REMEDY, misfit

REMEDY = "build it with `pip install --no-build-isolation -e .` in the source tree (needs g++ or clang)"


def build_info() -> dict[str, dict]:
    """Returns what is compiled and loaded: {"cpu": {"path", "loaded", "why", "remedy", "level"}, "cuda": {...}}.

    `why` and `remedy` say why a library is not loaded and what to do about it; they are None where it is. `level`, of
    the CPU library only, names the instruction set of the kernels that run. Whether the CUDA library fits a GPU is
    asked when a tensor comes from there (fit.py): asking starts CUDA, and a process with CUDA cannot be forked.
    """
    return _INFO


def _load() -> dict[str, dict]:
    info = {}
    for name, file, remedy in (("cpu", "_C.so", REMEDY), ("cuda", "_C_cuda.so", CUDA_REMEDY)):
        path = Path(__file__).parents[1] / file
        why = None
        if not path.exists():
            why = "not built"
        elif name == "cuda" and not torch.backends.cuda.is_built():
            why = "this torch has no CUDA"
        elif name == "cuda" and not info["cpu"]["loaded"]:
            why = "the CPU library, which defines the operators, is not loaded"
        else:
            try:
                torch.ops.load_library(path)
            except OSError as error:
                why = str(error.__cause__ or error)
        info[name] = {
            "path": str(path) if path.exists() else None,
            "loaded": why is None,
            "why": why,
            "remedy": remedy if why else None,
            "level": None,
        }
    if info["cpu"]["loaded"]:
        info["cpu"]["level"] = ("portable", "AVX2", "AVX-512")[torch.ops.softpool3d.cpu_level()]
        for name, plain in _PLAIN.items():
            _complete(name, plain)
    return info


def choose(tensor: Tensor) -> str:
    """Returns the implementation for this tensor: "cpu", "cuda" or "reference"."""
    # torch puts the text of device.type together anew: 5 microseconds between other work
    kind = "cpu" if tensor.is_cpu else "cuda" if tensor.is_cuda else tensor.device.type
    if kind == "meta":  # shapes only: the fake kernels have them
        kind = "cpu"
    library = build_info().get(kind)
    if library is None or not library["loaded"] or tensor.layout != torch.strided:
        return "reference"
    if kind == "cuda" and misfit(library["path"], tensor.device.index) is not None:
        return "reference"
    if forward_ad._current_level >= 0:  # in forward mode: the kernels have no tangents, torch's own operators have
        return "reference"
    if type(tensor) is Tensor or torch.compiler.is_compiling() or isinstance(tensor, torch._subclasses.FakeTensor):
        return kind
    # A subclass with a dispatch of its own (DTensor, ...) knows torch's operators, not ours.
    if type(tensor).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__:
        return "reference"
    return kind


def run(name: str, input: Tensor, betas: Tensor | None, beta: float, *geometry) -> Tensor:
    """Calls a compiled operator; `choose` has said that its library is loaded."""
    return _CALLS[name](input, betas, beta, *geometry)


@cache
def warn_of_reference(kind: str, index: int | None = None) -> None:
    """Says once for each device why the slow path runs where a compiled one exists."""
    library = build_info().get(kind)
    why = library and (library["why"], library["remedy"])
    if kind == "cuda" and library["loaded"]:
        why = misfit(library["path"], index)
    if why and why[0]:
        warnings.warn(
            f"softpool3d: no compiled library for {kind} ({why[0]}), so plain PyTorch runs, which is slower and needs "
            f"more memory; {why[1]}",
            stacklevel=5,
        )


# --- what torch needs besides kernels -----------------------------------------------------------------------
#
# Arguments of all operators: tensors, then (beta_per_channel, beta), then the geometry, then for the backwards whether
# the gradients of input and of beta_per_channel are wanted.

_CALLS = {}  # name -> the function to call the operator by

# name -> the same in plain PyTorch
_PLAIN = {
    "soft_pool3d": fallback.soft_pool3d_fallback,
    "adaptive_soft_pool3d": fallback.adaptive_soft_pool3d_fallback,
}


def is_channels_last(x: Tensor) -> bool:
    """Whether the kernels take `x` for channels_last_3d, by the rule of cuda_ext/problem.h."""
    return x.shape[1] > 1 and x.stride(1) == 1 and not x.is_contiguous()


def _empty(like: Tensor, size) -> Tensor:
    layout = torch.channels_last_3d if is_channels_last(like) else torch.contiguous_format
    return torch.empty(size, dtype=like.dtype, device=like.device, memory_format=layout)


def _output_size(x: Tensor, geometry) -> list[int]:
    if len(geometry) == 1:
        return list(geometry[0])
    *triples, ceil_mode = geometry
    return [reference.pooled_size(*values, ceil_mode) for values in zip(x.shape[2:], *triples, strict=True)]


def _complete(name: str, plain: Callable[..., Tensor]) -> None:
    """Adds to the operator `name` and its backward what a compiler and autograd ask for besides kernels."""
    forward = getattr(torch.ops.softpool3d, name).default
    backward = getattr(torch.ops.softpool3d, f"{name}_backward").default

    @torch.library.register_fake(forward)
    def fake(input, betas, beta, *geometry):
        return _empty(input, [*input.shape[:2], *_output_size(input, geometry)])

    @torch.library.register_fake(backward)
    def fake_backward(grad, input, betas, beta, *rest):
        *_, input_grad, beta_grad = rest
        wide = torch.float64 if input.dtype == torch.float64 else torch.float32
        return (
            _empty(input, input.shape) if input_grad else input.new_empty(0),
            input.new_empty(input.shape[1] if beta_grad else 0, dtype=wide),
        )

    def derivative(ctx, grad):
        input, betas = ctx.saved_tensors
        of_input, of_betas, *_ = ctx.needs_input_grad
        grads = call_backward(grad, input, betas, *ctx.constants, of_input, of_betas)
        return grads[0] if of_input else None, grads[1] if of_betas else None

    def second_derivative(ctx, *grads):
        """Differentiates plain PyTorch twice: rarely needed, so it has no kernel of its own."""
        beta, *geometry, input_grad, beta_grad = ctx.constants
        tensors = [t for t in ctx.saved_tensors if t is not None]

        def first_derivative(grad, *sources):
            def pool(input, betas=None):
                return plain(input, *geometry, beta if betas is None else betas)

            _, pull_back = torch.func.vjp(pool, *sources)
            return pull_back(grad)

        found, pull_back = torch.func.vjp(first_derivative, *tensors)
        given = [
            g if wanted else torch.zeros_like(f)
            for f, g, wanted in zip(found, grads, (input_grad, beta_grad), strict=False)
        ]
        second = pull_back(tuple(given))
        return second if len(second) == 3 else (*second, None)

    call_backward = _with_derivative(backward, 3, second_derivative)
    _CALLS[name] = _with_derivative(forward, 2, derivative)

    _batch(forward, backward)


def _batch(forward, backward) -> None:
    """Adds the vmap rules of an operator and its backward."""

    def batched(info, dims, input, betas, *constants):
        x, b, fold, unfold = _folded(info.batch_size, dims, [input], betas, per_channel=dims[1] is not None)
        return unfold(forward(x[0], b, *constants)), fold

    def batched_backward(info, dims, grad, input, betas, *constants):
        beta_grad = constants[-1]
        (g, x), b, fold, unfold = _folded(
            info.batch_size,
            (*dims[:2], dims[2]),
            [grad, input],
            betas,
            per_channel=beta_grad or dims[2] is not None,
        )
        grads = backward(g, x, b, *constants)
        gx = unfold(grads[0]) if constants[-2] else grads[0].new_empty(info.batch_size, 0)
        gb = grads[1].unflatten(0, (info.batch_size, -1)) if beta_grad else grads[1].new_empty(info.batch_size, 0)
        return (gx, gb), (fold if constants[-2] else 0, 0)

    torch.library.register_vmap(forward, batched)
    torch.library.register_vmap(backward, batched_backward)


def _with_derivative(op, tensors: int, derivative):
    """Registers the derivative of an operator, and returns a function that calls the operator.

    The call goes past torch.library's autograd unless it is traced. That autograd shows tracers the derivatives. Its
    detour through Python takes longer than most kernels, and the transforms of torch.func do not see it; they see an
    autograd.Function.

    Args:
        tensors: the number of arguments that are tensors; they come first.
        derivative: ctx, the outputs' gradients -> the gradients of the tensors; ctx has saved_tensors and constants.
    """
    below_autograd = torch._C._AutoDispatchBelowAutograd

    class Eager(torch.autograd.Function):  # its arguments are the tensors, and the constants as one
        @staticmethod
        def forward(ctx, *args):
            ctx.save_for_backward(*args[:-1])
            ctx.constants = args[-1]
            with below_autograd():
                return op(*args[:-1], *args[-1])

        @staticmethod
        def backward(ctx, *grads):
            return *derivative(ctx, *grads), None

    def save(ctx, inputs, output):
        ctx.save_for_backward(*inputs[:tensors])
        ctx.constants = inputs[tensors:]

    def derivative_of_all(ctx, *grads):
        return *derivative(ctx, *grads), *(None,) * len(ctx.constants)

    torch.library.register_autograd(op, derivative_of_all, setup_context=save)

    class Transformed(torch.autograd.Function):  # torch.func asks for setup_context, with which each call takes longer
        generate_vmap_rule = True
        setup_context = staticmethod(save)
        backward = staticmethod(derivative_of_all)

        @staticmethod
        def forward(*args):
            return op(*args)

    def call(*args):
        if is_traced():
            return op(*args)
        if torch._C._are_functorch_transforms_active():
            return Transformed.apply(*args)
        if torch.is_grad_enabled() and torch._C._any_requires_grad(*args[:tensors]):
            return Eager.apply(*args[:tensors], args[tensors:])
        with below_autograd():
            return op(*args)

    return call


def is_traced() -> bool:
    """Whether a compiler or torch.jit.trace records what is called."""
    return torch.compiler.is_compiling() or torch._C._is_tracing()


def _folded(size: int, dims, tensors: list[Tensor], betas: Tensor | None, per_channel: bool):
    """Folds vmap's dimension into the batch, or into the channels where each sample has a beta of its own."""
    at = 1 if per_channel else 0
    folded = []
    for tensor, dim in zip(tensors, dims, strict=False):
        tensor = (
            tensor.unsqueeze(at).expand(*tensor.shape[:at], size, *tensor.shape[at:])
            if dim is None
            else tensor.movedim(dim, at)
        )
        folded.append(tensor.flatten(at, at + 1))
    if per_channel:
        dim = dims[len(tensors)]
        betas = (betas.expand(size, -1) if dim is None else betas.movedim(dim, 0)).flatten()
    return folded, betas, at, lambda t: t.unflatten(at, (size, -1) if at else (size, t.shape[0] // size))


# Loaded at import: torch.compile may trace the first call.
_INFO = _load()
