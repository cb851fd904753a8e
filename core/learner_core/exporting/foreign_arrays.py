"""Arrays of another library by its names, on their way into a learner: every one is taken, or named and refused.

Needs numpy arrays that were read already. What layers of a network have in common in Torch's naming is here; which
layers a library's networks have is in ``weight_maps`` and ``sb3``.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from ..errors import ConfigError, StateError
from ..state.tree import Plain

if TYPE_CHECKING:
    from ..algorithm.algorithm import Algorithm
    from ..group.learner_group import LearnerGroup
    from ..learning.learner import Learner

__all__ = [
    "AnyLearner",
    "Arrays",
    "Converted",
    "ForeignArrays",
    "Trained",
    "channels_last",
    "check_kind",
    "load_into",
    "module_of",
]

Arrays = dict[str, np.ndarray]
#: What has the weights of learners.
AnyLearner: TypeAlias = "Learner | LearnerGroup"
#: The same, or a whole run.
Trained: TypeAlias = "AnyLearner | Algorithm"


@dataclass(frozen=True)
class Converted:
    """Another library's network by our names.

    Attributes:
        weights: every parameter.
        targets: the same of target networks; ``None``: those of the module that have a target copy are copied.
        log_alpha: SAC's temperature; ``None``: the learner's own stays.
    """

    weights: Arrays
    targets: Arrays | None = None
    log_alpha: float | None = None

    @property
    def num_arrays(self) -> int:
        """How many arrays there are."""
        return len(self.weights) + len(self.targets or {})


class ForeignArrays:
    """Hands out arrays by their names and remembers which were taken.

    Args:
        arrays: name -> array.
        whose: what they are of, for errors: "the model of Stable-Baselines3".
    """

    def __init__(self, arrays: Mapping[str, np.ndarray], whose: str) -> None:
        self.arrays = arrays
        self.whose = whose
        self._used: set[str] = set()

    def __iter__(self) -> Iterator[str]:
        return iter(self.arrays)

    def has(self, *starts: str) -> bool:
        """Whether a name begins so."""
        return any(name.startswith(starts) for name in self.arrays)

    def take(self, name: str) -> np.ndarray:
        """A copy of an array.

        Raises:
            StateError: there is none of that name.
        """
        if name not in self.arrays:
            raise StateError(f"missing in {self.whose}", path=name)
        self._used.add(name)
        return np.array(self.arrays[name])

    def mark(self, name: str) -> None:
        """Count an array as taken."""
        self._used.add(name)

    def layers(self, theirs: str, out: Arrays, own: str) -> int:
        """Copy ``theirs.<i>.weight/bias``, i with gaps for activations, to ``own.0, 1, ...``.

        Returns:
            How many layers there are.
        """
        found = self.indices(theirs)
        for number, index in enumerate(found):
            self.layer(f"{theirs}.{index}", out, f"{own}.{number}")
        return len(found)

    def layer(self, theirs: str, out: Arrays, own: str) -> None:
        """Copy one layer's weight and bias."""
        for part in ("weight", "bias"):
            out[f"{own}.{part}"] = self.take(f"{theirs}.{part}")

    def indices(self, theirs: str) -> list[int]:
        """The numbers i of ``theirs.<i>.*``, sorted."""
        layer = re.compile(rf"{re.escape(theirs)}\.([0-9]{{1,6}})\.")
        return sorted({int(match[1]) for match in map(layer.match, self.arrays) if match})

    def leftovers(self, harmless: Collection[str]) -> list[str]:
        """Names that were not taken, and are none of a policy's.

        Args:
            harmless: names, or ends of names with a dot in front (``".log_std_clip_param_const"``), that say nothing
                about what a network answers.

        Raises:
            StateError: others are left; names some.
        """
        left = sorted(set(self.arrays) - self._used)
        ends = tuple(name for name in harmless if name.startswith("."))
        foreign = [name for name in left if name not in harmless and not name.endswith(ends)]
        if foreign:
            shown = ", ".join(name[:100] for name in foreign[:4]) + (", ..." if len(foreign) > 4 else "")
            raise StateError(
                f"{self.whose} has {len(foreign)} arrays that have no place in the learner's module ({shown}): without "
                "them its policy would be another one",
                path=foreign[0],
            )
        return left


def module_of(learner: AnyLearner, module_id: str | None) -> str:
    """The module that is meant; the only one where none is named.

    Raises:
        ConfigError: there is no such module, or there are several.
    """
    specs = learner.module_specs
    if module_id is None:
        if len(specs) != 1:
            raise ConfigError(f"say which module by module_id=: {', '.join(specs)}")
        return str(next(iter(specs)))
    if module_id not in specs:
        raise ConfigError(f"module_id={module_id!r}: there is {', '.join(specs)}")
    return module_id


def check_kind(own: Mapping[str, np.ndarray], *, is_sac: bool, what: str, module_id: str) -> None:
    """Refuse SAC's networks for a module without critics of actions, and others for one with them.

    Args:
        own: the module's parameters by name.
        is_sac: whether what comes is SAC's.
        what: what comes, for the message.
        module_id: the module.

    Raises:
        ConfigError: it is of the other kind.
    """
    if is_sac != any(name.startswith("qf.") for name in own):
        theirs, has = ("SAC", "has no critics of actions") if is_sac else ("PPO (or A2C)", "has critics of actions")
        raise ConfigError(
            f"{what} of {theirs}, and module {module_id!r} {has}: import it into a learner of "
            f"{'SACConfig' if is_sac else 'PPOConfig'}"
        )


def channels_last(weight: np.ndarray, channels: int, path: str) -> np.ndarray:
    """Columns in the order [channels, height * width] to columns in the order [height * width, channels]."""
    if weight.ndim != 2 or not channels or weight.shape[1] % channels:
        raise StateError(f"has shape {weight.shape}, no multiple of {channels} channels", path=path)
    rows = weight.shape[0]
    return np.ascontiguousarray(weight.reshape(rows, channels, -1).transpose(0, 2, 1).reshape(rows, -1))


def load_into(
    learner: AnyLearner,
    state: dict[str, Plain],
    module_id: str,
    given: Converted,
    *,
    whose: str,
    keeps: tuple[str, ...] = (),
) -> None:
    """Put weights into a learner, whose optimizers start anew.

    Args:
        learner: a Learner or LearnerGroup.
        state: what its ``get_state`` returned; it is changed.
        module_id: which module.
        given: the weights.
        whose: what they are of, for errors.
        keeps: parameters whose names begin so, or are so, keep their value.

    Raises:
        StateError: an array too much, too few, of another shape, or not finite. Nothing has changed.
    """
    own, own_targets = state["rl_module"][module_id], state["targets"].get(module_id) or {}
    weights, targets = given.weights, given.targets
    _refuse_other_structure(own, weights, f"rl_module/{module_id}", whose)
    _replace(own, weights, f"rl_module/{module_id}", whose, keeps)
    if targets is None:
        targets = {name: own[name] for name in own_targets if name in weights}
        keeps = (*keeps, *(name for name in own_targets if name not in weights))
    if own_targets:
        _replace(own_targets, targets, f"targets/{module_id}", whose, keeps)
    if given.log_alpha is not None and "log_alpha" in state["variables"][module_id]:
        if not np.isfinite(given.log_alpha):
            raise StateError("holds NaN or an infinity", path="log_ent_coef")
        state["variables"][module_id]["log_alpha"] = given.log_alpha
    for entry in state["optimizer"][module_id].values():
        entry["step"] = 0
        for slot in entry["slots"].values():
            for array in slot.values():
                array[...] = 0
    learner.set_state(state)


def _refuse_other_structure(own: Arrays, given: Arrays, path: str, whose: str) -> None:
    """Say which setting of the learner's model makes it a network of the given kind."""
    for setting, in_own, in_given, true in (
        ("free_log_std", "log_std" in own, "log_std" in given, "one parameter per action for the spread of actions"),
        ("vf_share_layers", _shares(own), _shares(given), "layers that policy and value share"),
    ):
        if in_own != in_given and any(name.startswith("pi.") for name in given):
            has = ("has", "has none") if in_given else ("has no", "has")
            raise StateError(
                f"{whose} {has[0]} {true}, the learner's module {has[1]}: give it model={{{setting!r}: {in_given}}}",
                path=path,
            )


def _shares(arrays: Arrays) -> bool:
    return any(name.startswith("encoder") for name in arrays)


def _replace(into: Arrays, given: Arrays, path: str, whose: str, keeps: tuple[str, ...]) -> None:
    """Replace the arrays of one module, every one, shapes checked."""
    for name, value in given.items():
        if name not in into:
            raise StateError(
                "the learner's module has no such parameter; are its layers as many?", path=f"{path}/{name}"
            )
        if into[name].shape != value.shape:
            raise StateError(
                f"the learner has shape {into[name].shape}, the model {value.shape}", path=f"{path}/{name}"
            )
        with np.errstate(over="ignore", invalid="ignore"):
            converted = value.astype(into[name].dtype)
        if converted.dtype.kind == "f" and not np.isfinite(converted).all():
            raise StateError("the model holds NaN or an infinity there", path=f"{path}/{name}")
        into[name] = converted
    missing = [name for name in sorted(set(into) - set(given)) if not name.startswith(keeps)]
    if missing:
        raise StateError(f"missing in {whose}", path=f"{path}/{missing[0]}")
