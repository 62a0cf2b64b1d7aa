"""Finds a network's tensors in the weights files of other programs, and names them by the network's layers.

    {"epoch": 3, "state_dict": {"module.stem.0.weight": ...}}  ->  {"stem.0.weight": ...}, and notes of what was done

No pickled code is run: torch.load has weights_only=True, and stand-ins replace what is allowed beside torch's types.
"""

from __future__ import annotations

import pickle
import re
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from softpool3d.errors import UsageError, first_line, os_reason
from softpool3d.file_kinds import is_pickled, is_safetensors, what_is
from softpool3d.models.layouts import FIRST_LAYERS, State


@dataclass
class Found:
    """The tensors of a network that were found in a file.

    Attributes:
        notes: how they were found: the key that they were under, the prefixes that were taken off.
        metadata: of a safetensors file.
    """

    state: State
    notes: list[str] = field(default_factory=list)
    metadata: dict[str, str] = field(default_factory=dict)


def read_state(path: Path) -> Found:
    """Reads the network's tensors from a file of torch.save or safetensors; its content tells which it is.

    Raises:
        UsageError: if it is something else, damaged, needs code to be run, or holds no network or several.
    """
    try:
        safe = is_safetensors(path)
    except OSError as error:
        raise UsageError(f"weights: cannot read {path}: {os_reason(error)}") from None
    if safe or path.suffix.lower() == ".safetensors":
        return read_safetensors(path)
    found = _network_in(read_pickle(path), path)
    return _without_wrappers(found, path)


def tensors_of(path: Path, blamed: str = "") -> tuple[State, dict[str, str]]:
    """Reads the tensors and metadata of a safetensors file.

    Args:
        blamed: what goes before the file's name in the error.

    Raises:
        UsageError: if it is no such file, or damaged; says what it is instead.
    """
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118 (no dict)
    except (SafetensorError, OSError) as error:
        what = what_is(path) or f"not a safetensors file, or it is damaged ({first_line(error)})"
        raise UsageError(f"{blamed}{path} is {what}") from None


def read_safetensors(path: Path) -> Found:
    """Reads a safetensors file; takes wrappers off the names, unless the file is of a run of ours."""
    state, metadata = tensors_of(path, "weights: ")
    found = Found(state, [], metadata)
    return found if "softpool3d" in metadata else _without_wrappers(found, path)


# --- a pickle, without running it ------------------------------------------------------------------------------------


class _Beside:
    """A stand-in for an object beside the tensors, whose content is thrown away."""

    def __new__(cls, *_: Any) -> _Beside:
        return object.__new__(cls)

    def __init__(self, *_: Any) -> None: ...

    def __setstate__(self, _: Any) -> None: ...


class _Entries:
    """A stand-in for a kind of dict: makes an OrderedDict instead."""

    def __new__(cls, *_: Any) -> OrderedDict:
        return OrderedDict()


# What training programs save beside their weights. torch.load is given a stand-in of ours for each of these names, so
# that neither the class nor its library is imported or called: numbers, paths, times and settings, none of them needed.
_HARMLESS = {
    _Beside: (
        *("argparse.Namespace", "types.SimpleNamespace"),  # the options of a command line
        *("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"),  # accuracies, losses: numpy 1 and 2
        *("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct", "numpy.ndarray", "numpy.dtype"),
        *(f"pathlib{m}.{n}" for m in ("", "._local") for n in ("Path", "PosixPath", "PurePosixPath", "WindowsPath")),
        *("datetime.datetime", "datetime.date", "datetime.timedelta"),
        *(f"builtins.{name}" for name in ("dict", "list", "tuple", "int", "float", "str", "bool", "slice", "range")),
        # OmegaConf's settings (Hydra's), as it pickles them; typing.Any is a type that it names
        *("omegaconf.dictconfig.DictConfig", "omegaconf.listconfig.ListConfig", "typing.Any"),
        *("omegaconf.base.ContainerMetadata", "omegaconf.base.Metadata"),
        *(f"omegaconf.nodes.{kind}Node" for kind in ("Any", "String", "Integer", "Float", "Boolean")),
    ),
    _Entries: (
        "collections.defaultdict",
        *("fvcore.common.config.CfgNode", "yacs.config.CfgNode"),  # the settings of PySlowFast
        *("easydict.EasyDict", "addict.addict.Dict"),
        *("lightning.fabric.utilities.data.AttributeDict", "lightning_fabric.utilities.data.AttributeDict"),
        "pytorch_lightning.utilities.parsing.AttributeDict",
    ),
}


def read_pickle(path: Path) -> Any:
    """Reads the content of a file of torch.save, and of its format from before zip files.

    Raises:
        UsageError: if it is no such file, is damaged, or needs an object that is not allowed; names the object.
    """
    allowed = [(stand_in, name) for stand_in, names in _HARMLESS.items() for name in names]
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(allowed):
            warnings.simplefilter("ignore")  # of the pickle's protocol; what matters is said below
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UsageError(f"weights: cannot read {path}: {os_reason(error)}") from None
    except Exception as error:  # damaged bytes surface as any of a dozen types
        if what := what_is(path):
            raise UsageError(f"weights: {path} is {what}") from None
        if isinstance(error, pickle.UnpicklingError) and is_pickled(path):
            found = re.search(r"GLOBAL ([\w.]+)", str(error))
            raise UsageError(
                f"weights: {path} holds Python objects beside tensors, and those are not run "
                f"({found[1] if found else 'they need code to be run'}); save the network's state_dict() alone with "
                "torch.save"
            ) from None
        raise UsageError(f"weights: {path} is no file of torch.save, or it is damaged ({first_line(error)})") from None


# --- the network in it ------------------------------------------------------------------------------------------------

# Where training programs put their network, in the order in which they are tried; averages of weights come last.
_KEYS = (
    *("model_state", "state_dict", "model_state_dict", "model", "net", "network", "module"),
    *("ema", "model_ema", "state_dict_ema", "ema_state_dict"),
)


def _network_in(content: Any, path: Path) -> Found:
    """Finds the dict of tensors in a checkpoint: itself, or under one of the usual keys, or the only one in it."""
    states = dict(_states(content))
    if not states:
        names = ", ".join(map(str, list(content)[:4])) if isinstance(content, Mapping) else ""
        what = f"a dict of {names}" if names else f"a {type(content).__name__}"
        raise UsageError(f"weights: {path} is no state dict of a network: it holds {what}")
    known = [key for key in states if all(part in _KEYS for part in key)]
    if not known and len(states) > 1:
        several = ", ".join(".".join(key) for key in states)
        raise UsageError(f"weights: {path} holds several networks ({several}); save the state_dict() of one alone")
    chosen = min(known, key=lambda key: [_KEYS.index(part) for part in key]) if known else next(iter(states))
    notes = [f"taken from {'.'.join(chosen)}"] if chosen and chosen[0] not in _KEYS[:4] else []
    others = [".".join(key) for key in known if key != chosen]
    if others:
        notes = [f"taken from {'.'.join(chosen)}; {', '.join(others)} is there too, and was left out"]
    return Found({name: tensor.detach() for name, tensor in states[chosen].items()}, notes)


def _states(content: Any, key: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], State]]:
    """Yields the keys to every dict of tensors in nested ones, and the dict."""
    if not isinstance(content, Mapping) or len(key) > 3:
        return
    names_tensors = all(isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items())
    if content and names_tensors:
        yield key, dict(content)
        return
    for name, value in content.items():
        # an optimiser's or a metric's tensors are no network
        if isinstance(name, str) and (name in _KEYS or not key) and "optim" not in name:
            yield from _states(value, (*key, name))


# --- the names of its layers ------------------------------------------------------------------------------------------

# Around a layer anywhere in a network: torch.compile, activation checkpointing, FSDP.
_INSIDE = re.compile(r"(?:(?<=\.)|^)(?:(?:_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module)\.)+")
# Around the whole of one: DataParallel and DDP, Lightning, networks that have a backbone.
_AROUND = ("module", "model", "net", "network", "backbone")
_AVERAGED = "n_averaged"  # torch.optim.swa_utils.AveragedModel counts its updates under this name


def _without_wrappers(found: Found, path: Path) -> Found:
    """Renames tensors as the network itself does; notes say what stood before the names, and what was no part of it."""
    bare = {_INSIDE.sub("", name): tensor for name, tensor in found.state.items()}
    if len(bare) < len(found.state):
        raise UsageError(f"weights: {path} holds a network twice, compiled and not; save the state_dict() of one alone")
    notes = list(found.notes)
    if bare.keys() != found.state.keys():
        notes.append("wrappers around its layers, such as torch.compile's _orig_mod, taken off")
    prefix = _prefix(bare, path)
    state = {name.removeprefix(prefix): tensor for name, tensor in bare.items() if name.startswith(prefix)}
    beside = {name: tensor for name, tensor in bare.items() if not name.startswith(prefix)}
    if prefix:
        notes.append(f"the prefix {prefix} of its names taken off")
    for name in [name for name in (*state, *beside) if name.rpartition(".")[2] == _AVERAGED]:
        updates = (state if name in state else beside).pop(name)
        notes.append(f"an average of weights, over {int(updates)} updates ({_AVERAGED})")
    if beside:
        few = ", ".join([*list(beside)[:4], *(["..."] if len(beside) > 4 else [])])
        notes.append(f"not of the network below {prefix}, left out: {few}")
    return Found(state, notes, found.metadata)


def _prefix(state: State, path: Path) -> str:
    """Returns what stands before the name of the first layer, by the layers of the networks that are known here."""
    matches = (re.match(rf"((?:[^.]+\.)*?)(?:{FIRST_LAYERS})", name) for name in state)
    starts = {match[1] for match in matches if match}
    # layer1.0.conv1.weight is no first layer where there is a conv1.weight
    starts = {one for one in starts if not any(one != other and one.startswith(other) for other in starts)}
    if len(starts) > 1:
        usual = {one for one in starts if all(part in _AROUND for part in one.split(".")[:-1])}
        if len(usual) != 1:
            several = ", ".join(sorted(one.rstrip(".") or "no prefix" for one in starts))
            raise UsageError(f"weights: {path} holds several networks ({several}); save the state_dict() of one alone")
        starts = usual
    return starts.pop() if starts else ""
