"""``lc.export``: weights and policies in formats that need nothing of ours to be read."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ..backend import Backend
from ..errors import ConfigError, StateError, StateIOError, did_you_mean
from ..state.atomic import PathLike, check_target, write_atomically
from .foreign_arrays import Trained
from .formats import backend_for, default_suffix, export_formats
from .source import ExportedPolicy, read_source, require

__all__ = ["export"]

_BLOCK = 1 << 20


def export(
    checkpoint_or_learner: str | Path | Trained,
    path: PathLike,
    to: str | None = None,
    *,
    module_id: str | None = None,
    import_modules: Iterable[str] = (),
) -> Path:
    """Write a policy, or its weights, in another format.

    - ``"safetensors"``: the weights under their canonical names (with several modules after ``<module_id>.``), and how
      observations were normalised, if they were.
    - ``"torch"``: a ``state_dict`` that ``torch.load(path, weights_only=True)`` reads; of a user's own network in its
      own names and layouts. With a path that ends in ``.pt2``: the policy itself as an exported program, which
      ``torch.export.load(path).module()`` turns into a plain ``torch.nn.Module``.
    - ``"keras"``: the policy as a ``.keras`` model of Keras' own layers; a user's own model is saved as it is.
    - ``"onnx"``: the policy as an ONNX model, compared with numpy's answers first where onnxruntime is installed.

    Args:
        checkpoint_or_learner: a Learner, LearnerGroup or Algorithm, or the path of a checkpoint, of a run's folder or
            of a Learner's state file (weights only).
        path: the file to write; a regular file is replaced in one step and keeps its permissions.
        to: the format; ``None``: what the path's suffix says.
        module_id: which of several modules; ``None`` for all (safetensors, torch) or the only one.
        import_modules: modules that you trust: the checkpoint may name their classes, and they are imported for it.

    Returns:
        ``path``.

    Raises:
        ConfigError: unknown format or module, a missing package, or a module that cannot be exported so.
        StateError: the file cannot be read, or not be written.

    References:
        https://github.com/huggingface/safetensors, https://onnx.ai/onnx/
    """
    if os.fsdecode(path).endswith("/"):
        raise ConfigError(f"{path}: expected the name of a file, not of a folder")
    target = Path(path)
    kind = _format(target, to)
    if not target.absolute().parent.is_dir():
        raise ConfigError(f"{target} cannot be written: there is no folder {target.parent}; make it first")
    policies = read_source(checkpoint_or_learner, import_modules=import_modules)
    if not policies:
        raise StateError("there is no module in it, so there is nothing to export", path="rl_module")
    if module_id is not None:
        known = [policy.module_id for policy in policies]
        policies = [policy for policy in policies if policy.module_id == module_id]
        if not policies:
            raise ConfigError(f"module_id={module_id!r}: there is no such module.{did_you_mean(module_id, known)}")
    file_format = export_formats()[kind]
    whole_policy = not file_format.weights or target.suffix in file_format.policies
    if whole_policy and len(policies) > 1:
        # The others are there to train with.
        policies = [policy for policy in policies if policy.spec is None or policy.spec.acts]
    if whole_policy and len(policies) > 1:
        raise ConfigError(
            f"to={kind!r} writes one policy; say which by module_id=: {', '.join(p.module_id for p in policies)}"
        )
    if whole_policy and policies[0].spec is not None and policies[0].spec.masked:
        warnings.warn(
            f"module {policies[0].module_id!r} acts by masks in a run, and an exported policy is given none: of its "
            "'action_dist_inputs', take the most likely action that is allowed",
            UserWarning,
            stacklevel=2,
        )
    check_target(target)
    # Frameworks write by themselves, and Keras goes by the suffix: into a folder that is ours alone, and from there.
    with tempfile.TemporaryDirectory(prefix="learner-core-export-") as folder:
        temporary = Path(folder) / f"policy{target.suffix or default_suffix(file_format)}"
        try:
            _write(kind, policies, temporary, whole_policy=whole_policy)
            with temporary.open("rb") as stream:
                write_atomically(target, iter(lambda: stream.read(_BLOCK), b""))
        except StateIOError:
            raise
        except OSError as error:
            raise ConfigError(f"{target} cannot be written: {error.strerror or error}") from error
    return target


def _format(path: Path, to: str | None) -> str:
    formats = export_formats()
    if to is None:
        for name, file_format in formats.items():
            if path.suffix in (*file_format.weights, *file_format.policies):
                return name
        raise ConfigError(f"{path}: say the format by to=; the suffix {path.suffix!r} does not. {list(formats)}")
    if to not in formats:
        raise ConfigError(f"to={to!r} is no format.{did_you_mean(to, formats)}")
    return to


def _write(kind: str, policies: list[ExportedPolicy], path: Path, *, whole_policy: bool) -> None:
    if kind == "safetensors":
        require("safetensors", "export")
        from safetensors.numpy import save_file

        # Safetensors writes a strided array's memory as it lies, so it must be contiguous.
        arrays = {name: np.ascontiguousarray(value) for name, value in named_arrays(policies).items()}
        save_file(arrays, str(path), metadata={"format": "learner-core", "layout": "torch"})
    elif kind == "onnx":
        from .onnx_file import write_onnx

        write_onnx(policies[0], path)
    elif whole_policy:
        policies[0].require_spec(kind)
        backend_for(kind).export_policy(policies[0], path)
    else:
        backend = backend_for(kind)
        backend.export_weights(_native_arrays(policies, backend), path)


def named_arrays(policies: list[ExportedPolicy]) -> dict[str, np.ndarray]:
    """Canonical name -> array, of one module without a prefix; and the normaliser's ``<path>.mean`` and ``.scale``."""
    out: dict[str, np.ndarray] = {}
    for policy in policies:
        prefix = f"{policy.module_id}." if len(policies) > 1 else ""
        out.update({prefix + name: value for name, value in policy.params.items()})
    for path, (mean, scale, clip) in policies[0].normalizer.items():
        name = f"observation_normalizer.{path.replace('/', '.')}"
        out.update({f"{name}.mean": mean, f"{name}.scale": scale, f"{name}.clip": np.asarray(clip)})
    return out


def _native_arrays(policies: list[ExportedPolicy], backend: Backend) -> dict[str, np.ndarray]:
    if policies[0].refusal:
        warnings.warn(
            f"the weights are written under canonical names: the network's own are not known, because "
            f"{policies[0].refusal}",
            UserWarning,
            stacklevel=4,
        )
    if len(policies) == 1 and policies[0].spec is not None and not policies[0].spec.is_neutral:
        module: Any = policies[0].spec.build(backend.xp, backend)
        if policies[0].normalizer:
            warnings.warn(
                "observations were normalised in training; the state_dict of a user's own network has no place for "
                "that: export to safetensors as well, which has the statistics",
                UserWarning,
                stacklevel=4,
            )
        native: dict[str, np.ndarray] = module.export_native(policies[0].params)
        return native
    return named_arrays(policies)
