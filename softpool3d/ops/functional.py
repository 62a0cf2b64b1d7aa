"""SoftPool as functions. The 1-D and 2-D ones pool views of their input in 3-D."""

import warnings
from collections.abc import Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from softpool3d.ops import decomposition, library
from softpool3d.ops.fallback import adaptive_soft_pool3d_fallback, soft_pool3d_fallback
from softpool3d.ops.reference import pooled_size

Size = int | Sequence[int]  # numpy's integers too
_NAMES, _ADAPTIVE_NAMES = ({dims: f"{kind}_pool{dims}d" for dims in (1, 2, 3)} for kind in ("soft", "adaptive_soft"))


def backend(tensor: Tensor) -> str:
    """Returns the implementation that runs for `tensor`: "cpu" or "cuda" (compiled), or "reference" (plain PyTorch).

    Plain PyTorch runs where no library is compiled for the device, under forward-mode differentiation (jvp, jacfwd),
    and for tensor subclasses with a dispatch of their own.
    """
    return library.choose(tensor)


def soft_pool3d(
    input: Tensor,
    kernel_size: Size = 2,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    beta: float | Tensor = 1.0,
) -> Tensor:
    """Returns the 3D SoftPool of clips: each window's softmax-weighted sum (arXiv 2101.00440, equations 1 and 2).

    y = sum_i w_i x_i with w_i = exp(beta x_i) / sum_j exp(beta x_j), over the window's positions inside the input.
    Padding is outside, as in max pooling. Along an axis of 5, with kernel_size 3, stride 2 and padding 1:

        input       .  a  b  c  d  e  .
        window 1   [.  a  b]
        window 2         [b  c  d]
        window 3               [d  e  .]

    A window with NaN gives NaN, and any other with +inf gives +inf. -inf has weight 0; a window of only -inf gives
    -inf. An empty window, which dilation makes possible, gives 0. The function is twice differentiable, in beta too,
    and in forward mode, which runs in plain PyTorch. The gradients of a window with NaN are NaN, even where the
    incoming one is 0; where y is infinite, they are 0. While |beta x| stays below some 40, they are precise to
    |beta x| + 8 roundings, relative to the largest of a window.

    Args:
        input: (N, C, T, H, W) or (C, T, H, W); float64, float32, float16 or bfloat16, any strides. Half types are
            summed in float32.
        kernel_size, stride, padding, dilation: an int or (T, H, W), numpy's ints too; `stride` defaults to
            `kernel_size`.
        ceil_mode: round the output size up, as in max pooling.
        beta: inverse temperature; 0 is average pooling, large is max pooling, and infinity is the mean of a window's
            maxima (of its minima, if negative). A float, numpy's too, or a tensor with one value per channel (shape
            (C,)) or for all of them (shape ()), which may require grad.

    Returns:
        (N, C, To, Ho, Wo) or (C, To, Ho, Wo) of input's type, with the sizes of `torch.nn.functional.max_pool3d`;
        channels_last_3d where the input is.

    Raises:
        RuntimeError: for the arguments for which `max_pool3d` raises it, with the same text.
        TypeError: input's or beta's type is not one of those above.
        ValueError: beta is NaN (a float; a tensor is not looked into), has the wrong length or is on another device
            than input.
    """
    return _soft_pool(input, 3, kernel_size, stride, padding, dilation, ceil_mode, beta)


def soft_pool2d(
    input: Tensor,
    kernel_size: Size = 2,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    beta: float | Tensor = 1.0,
) -> Tensor:
    """Returns the 2D SoftPool of (N, C, H, W) or (C, H, W); otherwise as `soft_pool3d`."""
    return _soft_pool(input, 2, kernel_size, stride, padding, dilation, ceil_mode, beta)


def soft_pool1d(
    input: Tensor,
    kernel_size: Size = 2,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    beta: float | Tensor = 1.0,
) -> Tensor:
    """Returns the 1D SoftPool of (N, C, L) or (C, L); otherwise as `soft_pool3d`."""
    return _soft_pool(input, 1, kernel_size, stride, padding, dilation, ceil_mode, beta)


def adaptive_soft_pool3d(input: Tensor, output_size: int | Sequence[int | None], beta: float | Tensor = 1.0) -> Tensor:
    """Pools clips to a given (T, H, W) by SoftPool over the bins of torch's adaptive pools; 1 pools the whole clip.

    Args:
        input: as for `soft_pool3d`.
        output_size: an int or (T, H, W), all above 0; None keeps the size of that dimension.
        beta: as for `soft_pool3d`.

    Returns:
        (N, C, *output_size) or (C, *output_size) of input's type; channels_last_3d where the input is.

    Raises:
        ValueError: output_size has the wrong length or a value below 1, or beta as for `soft_pool3d`.
        RuntimeError, TypeError: as for `soft_pool3d`.
    """
    return _adaptive(input, 3, output_size, beta)


def adaptive_soft_pool2d(input: Tensor, output_size: int | Sequence[int | None], beta: float | Tensor = 1.0) -> Tensor:
    """Pools pictures to a given (H, W); otherwise as `adaptive_soft_pool3d`."""
    return _adaptive(input, 2, output_size, beta)


def adaptive_soft_pool1d(input: Tensor, output_size: int | Sequence[int | None], beta: float | Tensor = 1.0) -> Tensor:
    """Pools sequences to a given L; otherwise as `adaptive_soft_pool3d`."""
    return _adaptive(input, 1, output_size, beta)


# --- from the public arguments to the operators' ------------------------------------------------------------


def refuse_script():
    """Stands for a function or module that torch.jit.script is about to compile."""
    raise RuntimeError(
        "softpool3d: torch.jit.script cannot compile SoftPool; use torch.export.export or torch.jit.trace "
        "(softpool3d.decompositions() turns an exported program into standard operators)"
    )


for _name in (*_NAMES.values(), *_ADAPTIVE_NAMES.values()):
    globals()[_name].__prepare_scriptable__ = refuse_script


def _soft_pool(input, dims, kernel_size, stride, padding, dilation, ceil_mode, beta) -> Tensor:
    window = (kernel_size, stride, padding, dilation, ceil_mode)
    if has_torch_function((input, beta)):  # torch.fx's tracer sees one function, subclasses of Tensor one of torch's
        function = (soft_pool1d, soft_pool2d, soft_pool3d)[dims - 1]
        return handle_torch_function(function, (input, beta), input, *window, beta)
    geometry = _remembered(_pool_geometry, input, dims, window)
    if geometry is None:
        _raise_as_max_pool(input, dims, *window)
    name = _NAMES[dims]
    _check_type(name, input)
    beta = _check_beta(name, input, dims, beta)
    return _run(input, dims, "soft_pool3d", soft_pool3d_fallback, beta, geometry)


def _adaptive(input, dims, output_size, beta) -> Tensor:
    if has_torch_function((input, beta)):
        function = (adaptive_soft_pool1d, adaptive_soft_pool2d, adaptive_soft_pool3d)[dims - 1]
        return handle_torch_function(function, (input, beta), input, output_size, beta)
    geometry = _remembered(_adaptive_geometry, input, dims, (output_size,))
    name = _ADAPTIVE_NAMES[dims]
    if torch.jit.is_tracing() and isinstance(output_size, Sequence) and None in output_size:
        warnings.warn(f"{name}: None keeps the sizes of this input", torch.jit.TracerWarning, stacklevel=3)
    _check_type(name, input)
    beta = _check_beta(name, input, dims, beta)
    return _run(input, dims, "adaptive_soft_pool3d", adaptive_soft_pool3d_fallback, beta, geometry)


def _remembered(check, input, dims, window):
    """Returns `check(input.shape, dims, *window)`, remembered: a network asks for the same at every step."""
    if not library.is_traced():
        try:
            # The types are part of what is looked up: (True, 2) equals (1, 2), and is refused.
            kinds = tuple([type(n) for value in window if type(value) is tuple for n in value])
            return _of_before(check, input.shape, dims, kinds, *window)
        except TypeError:  # lists cannot be looked up, nor can symbolic sizes
            pass
    return check(_sizes(input), dims, *window)


@lru_cache(maxsize=1024, typed=True)
def _of_before(check, shape, dims, kinds, *window):
    return check(shape, dims, *window)


def _sizes(tensor: Tensor) -> torch.Size:
    """Returns a tensor's shape as numbers, which torch.jit.trace would otherwise take for tensors of its graph."""
    if not torch.jit.is_tracing():
        return tensor.shape
    state = torch._C._get_tracing_state()
    torch._C._set_tracing_state(None)
    try:
        return tensor.shape
    finally:
        torch._C._set_tracing_state(state)


def _pool_geometry(shape, dims, kernel_size, stride, padding, dilation, ceil_mode):
    """Returns the operator's geometry, or None where max pooling would not take these arguments."""
    kernel, padding, dilation = (_tuple(v, dims) for v in (kernel_size, padding, dilation))
    no_stride = stride is None or (isinstance(stride, Sequence) and len(stride) == 0)
    stride = kernel if no_stride else _tuple(stride, dims)
    if not _is_valid(shape, dims, kernel, stride, padding, dilation, ceil_mode):
        return None
    front = 3 - dims
    return (
        (1,) * front + kernel,
        (1,) * front + stride,
        (0,) * front + padding,
        (1,) * front + dilation,
        ceil_mode,
    )


def _adaptive_geometry(shape, dims, output_size):
    name = _ADAPTIVE_NAMES[dims]
    if len(shape) not in (dims + 1, dims + 2) or any(n == 0 for n in shape[-dims - 1 :]):
        raise RuntimeError(
            f"{name}: input must be (N, C, {', '.join('THW'[-dims:])}) or without N, with nothing but N empty, "
            f"but got shape {tuple(shape)}"
        )
    sizes = output_size
    if isinstance(output_size, Sequence) and not isinstance(output_size, str):
        sizes = [shape[i - dims] if n is None else n for i, n in enumerate(output_size)]
    sizes = _tuple(sizes, dims)
    if sizes is None:
        raise ValueError(f"{name}: output_size must be an int or {dims} of them, but got {output_size!r}")
    if any(n < 1 for n in sizes):
        raise ValueError(f"{name}: output_size must be above 0, but got {output_size}")
    return ((1,) * (3 - dims) + sizes,)


def _run(input, dims, name, fallback, beta, geometry) -> Tensor:
    x = input if input.dim() == dims + 2 else input.unsqueeze(0)
    for _ in range(3 - dims):
        x = x.unsqueeze(2)
    betas, number = (beta, 1.0) if isinstance(beta, Tensor) else (None, beta)
    if library.is_traced() and torch.onnx.is_in_onnx_export():  # ONNX knows standard operators only
        y = getattr(decomposition, name)(x, betas, number, *geometry)
    elif library.choose(x) == "reference":
        library.warn_of_reference(x.device.type, x.device.index)
        y = fallback(x, *geometry, beta)
    else:
        y = library.run(name, x, betas, number, *geometry)
    for _ in range(3 - dims):
        y = y.squeeze(2)
    return y if input.dim() == dims + 2 else y.squeeze(0)


def plain(value):
    """Returns numpy's scalars, alone or in a tuple or list, as Python's; anything else as it is."""
    if type(value) in (tuple, list):
        return type(value)(plain(v) for v in value)
    if isinstance(value, (int, float, torch.SymInt, torch.SymFloat)) or getattr(value, "ndim", None) != 0:
        return value
    return value.item()  # known by its look: torch runs without numpy too


def _tuple(value: Size, dims: int) -> tuple[int, ...] | None:
    """Returns `dims` ints, or None if `value` is neither an int nor a sequence of one or `dims` ints."""
    value = plain(value)
    if _is_int(value):
        return (value,) * dims
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) not in (1, dims):
        return None
    if not all(_is_int(v) for v in value):
        return None
    return tuple(value) * (dims if len(value) == 1 else 1)


def _is_int(value) -> bool:
    return isinstance(value, (int, torch.SymInt)) and not isinstance(value, bool)


def _is_valid(shape, dims, kernel, stride, padding, dilation, ceil_mode) -> bool:
    """Whether max pooling would take these arguments."""
    if None in (kernel, stride, padding, dilation) or not isinstance(ceil_mode, bool):
        return False
    if len(shape) not in (dims + 1, dims + 2) or any(n == 0 for n in shape[-dims - 1 :]):
        return False
    for n, k, s, p, d in zip(shape[-dims:], kernel, stride, padding, dilation, strict=True):
        if k < 1 or s < 1 or d < 1 or p < 0 or p > k // 2 or max(k, s, p, d) >= 2**31:
            return False
        if pooled_size(n, k, s, p, d, ceil_mode) < 1:
            return False
    return True


def _raise_as_max_pool(input, dims, kernel_size, stride, padding, dilation, ceil_mode) -> None:
    """Raises what max pooling raises for these arguments, by calling it on a tensor of that shape without data."""
    shaped = torch.empty((), requires_grad=input.requires_grad).expand(input.shape)
    max_pool = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[dims - 1]
    max_pool(shaped, kernel_size, stride, padding, dilation, ceil_mode)
    raise RuntimeError(
        f"soft_pool{dims}d: cannot pool an input of shape {tuple(input.shape)} with kernel_size={kernel_size}, "
        f"stride={stride}, padding={padding}, dilation={dilation}, ceil_mode={ceil_mode}"
    )


def _check_type(name: str, input: Tensor) -> None:
    if input.dtype not in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
        raise TypeError(f"{name}: input must be float64, float32, float16 or bfloat16, but got {input.dtype}")


def _check_beta(name: str, input: Tensor, dims: int, beta: float | Tensor) -> float | Tensor:
    """Returns beta as a float, not NaN, or as a tensor (C,) of the type that sums are kept in."""
    if type(beta) is float and beta == beta:  # most calls end here
        return beta
    numbers = (int, float, torch.SymFloat)
    if torch.compiler.is_compiling() and not isinstance(beta, (Tensor, *numbers)) and hasattr(beta, "dtype"):
        beta = torch.as_tensor(beta, dtype=torch.float32, device=input.device)  # to the compiler, numpy's are tensors
    if not isinstance(beta, Tensor):
        beta = plain(beta)
        if isinstance(beta, bool) or not isinstance(beta, numbers):
            raise TypeError(f"{name}: beta must be a float or a tensor, but got {beta!r}")
        if beta != beta:  # a comparison, because torch.compile may make it symbolic
            raise ValueError(f"{name}: beta is NaN")
        return float(beta) if isinstance(beta, int) else beta
    if not beta.is_floating_point():
        raise TypeError(f"{name}: a tensor beta must be of a floating-point type, but got {beta.dtype}")
    channels = _sizes(input)[-dims - 1]
    if beta.dim() > 1 or (beta.dim() == 1 and _sizes(beta)[0] != channels):
        raise ValueError(
            f"{name}: a tensor beta must hold one value per channel, shape ({channels},), or one for all, shape (), "
            f"but got shape {tuple(_sizes(beta))}"
        )
    if beta.device != input.device:
        raise ValueError(f"{name}: beta must be on input's device {input.device}, but got {beta.device}")
    return beta.to(torch.float64 if input.dtype == torch.float64 else torch.float32).expand(channels)
