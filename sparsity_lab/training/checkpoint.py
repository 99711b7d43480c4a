"""Checkpoints: weights, optimizer state and records in one safetensors file.

Tensors are ``model.<name>`` and ``optimizer.<name>.<entry>``, where the name is the parameter's. The metadata holds
JSON: the step, the rows recorded so far, and a hash of it all, so that damage is noticed. Nothing is pickled, and
reading a file from elsewhere executes nothing.
"""

import hashlib
import itertools
import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from sparsity_lab.training.files import Check, DamagedFile, open_file, write_file

Tensors = dict[str, Tensor]


def weights_bytes(model: nn.Module) -> bytes:
    """The file of a model's state; its bytes are a function of the values."""
    return save(_packed(model.state_dict()))


def load_weights(file: Path, model: nn.Module) -> None:
    """Put the weights of ``file`` into ``model``.

    Raises:
        DamagedFile: not a safetensors file, not of this model, of another dtype, or it cannot be read.
    """
    # Twice as much as there can be, with the names.
    most = 2**24 + 2 * sum(tensor.nbytes for tensor in model.state_dict().values())
    tensors, _ = _read(file, most)
    _check_names(file, tensors, model.state_dict())
    model.load_state_dict(tensors)


def save_checkpoint(
    file: Path, model: nn.Module, optimizer: torch.optim.Optimizer, record: dict[str, Any], check: Check | None = None
) -> None:
    """Write everything that training needs to go on.

    Args:
        record: JSON data that comes back unchanged; floats keep all their bits. ``run`` in it is the run's id.
        check: as for ``files.write_file``.
    """
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        for entry, tensor in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{name}.{entry}"] = tensor
    packed = _packed(tensors)
    text = json.dumps(record, sort_keys=True)
    # safetensors writes several metadata entries in no fixed order, so there is just one.
    metadata = {"checkpoint": json.dumps({"record": text, "hash": _hash(packed, text)})}
    write_file(file, save(packed, metadata), flush=True, check=check)


def load_checkpoint(file: Path, model: nn.Module, optimizer: torch.optim.Optimizer, run: str) -> dict[str, Any]:
    """Put a checkpoint's state into ``model`` and ``optimizer`` and return its record.

    Raises:
        DamagedFile: as ``verify_checkpoint``, or it belongs to another model; nothing has been loaded then.
        FileNotFoundError: there is none.
    """
    # Weights, two moments, and the records.
    most = 2**30 + 6 * sum(tensor.nbytes for tensor in model.state_dict().values())
    tensors, record = verify_checkpoint(file, run, most)
    weights = {n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")}
    _check_names(file, weights, model.state_dict())
    states = {}
    for name, parameter in model.named_parameters():
        prefix = f"optimizer.{name}."
        entries = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
        # The step counter of a fused optimizer lies with its parameter.
        states[parameter] = {entry: tensor.to(parameter.device, copy=True) for entry, tensor in entries.items()}
        shapes = {entry: tuple(tensor.shape) for entry, tensor in entries.items()}
        if shapes and shapes != {"step": (), **dict.fromkeys(("exp_avg", "exp_avg_sq"), tuple(parameter.shape))}:
            raise DamagedFile(file, f"holds no state of AdamW for {name}: {shapes}")
    model.load_state_dict(weights)
    optimizer.state.update({parameter: state for parameter, state in states.items() if state})
    return record


def verify_checkpoint(file: Path, run: str, most: int) -> tuple[Tensors, dict[str, Any]]:
    """The tensors of a checkpoint of at most so many bytes and its record, as they were written.

    Raises:
        DamagedFile: the file was cut or changed, belongs to another run, or cannot be read.
        FileNotFoundError: there is none.
    """
    tensors, metadata = _read(file, most)
    try:
        outer = json.loads(metadata["checkpoint"])
        text, expected = outer["record"], outer["hash"]
        intact = _hash(tensors, text) == expected
        record: dict[str, Any] = json.loads(text)
        whose = record.get("run", run)  # checkpoints did not always say whose they are
        known = _is_record(record)
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError):
        raise DamagedFile(file, "is not a checkpoint") from None
    if not known:
        raise DamagedFile(file, "is not a checkpoint of this release")
    if not intact:
        raise DamagedFile(file, "was changed after it was written: the checksum differs")
    if whose != run:
        raise DamagedFile(file, f"belongs to another run, {whose}")
    return tensors, record


def _is_record(record: dict[str, Any]) -> bool:
    """Whether training can go on from this: the number of steps done, and both frames' rows of the same steps before
    it."""
    from sparsity_lab.training.store import METRICS_SCHEMA, TIMING_SCHEMA  # noqa: PLC0415, loads polars

    done, metrics, timing = record["step"], record["metrics"], record["timing"]
    for rows, schema in ((metrics, METRICS_SCHEMA), (timing, TIMING_SCHEMA)):
        kinds = {column: kind.to_python() for column, kind in schema.items()}
        if any({column: type(value) for column, value in row.items()} != kinds for row in rows):
            return False
    logged = [row["step"] for row in metrics]
    ascending = all(low < high for low, high in itertools.pairwise([-1, *logged, done]))
    numbers = [done, *(value for row in (*metrics, *timing) for value in row.values() if type(value) is int)]
    whole = type(done) is int and all(0 <= number < 2**63 for number in numbers)
    return ascending and whole and logged == [row["step"] for row in timing]


def _packed(tensors: Tensors) -> Tensors:
    """Copies on the CPU that share no memory, which safetensors asks for."""
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in sorted(tensors.items())}


def _read(file: Path, most: int) -> tuple[Tensors, dict[str, str]]:
    """Tensors and metadata. The tensors are copies: a mapped file is not aligned as torch aligns its own memory, and
    alignment can decide how a sum is ordered."""
    try:
        with open_file(file) as opened:  # safe_open would wait for whoever writes to a pipe
            if os.fstat(opened.fileno()).st_size > most:
                raise DamagedFile(file, f"has more than {most} bytes")
        with safe_open(file, framework="pt") as opened:
            return {name: opened.get_tensor(name).clone() for name in opened.keys()}, opened.metadata() or {}  # noqa: SIM118
    except FileNotFoundError:
        raise
    except OSError as error:
        raise DamagedFile(file, f"cannot be read: {error.strerror or error}") from None
    except SafetensorError as error:
        raise DamagedFile(file, f"was cut or changed after it was written: {error}") from None


def _check_names(file: Path, tensors: Tensors, expected: Tensors) -> None:
    found, wanted = ({name: tuple(tensor.shape) for name, tensor in one.items()} for one in (tensors, expected))
    for name in sorted(found.keys() | wanted.keys()):
        if found.get(name) != wanted.get(name):
            difference = f"{name} is {found.get(name, 'missing')}, not {wanted.get(name, 'part of this one')}"
            raise DamagedFile(file, f"holds the weights of another model: {difference}")
        if tensors[name].dtype != expected[name].dtype:
            difference = f"{name} is {tensors[name].dtype}, not {expected[name].dtype}"
            raise DamagedFile(file, f"holds weights of another dtype: {difference}")


def _hash(tensors: Tensors, text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return digest.hexdigest()
