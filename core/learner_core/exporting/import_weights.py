"""``lc.import_weights``: arrays that the user has read, by another library's names, into a learner.

Needs {name: numpy array}; opens no file and unpickles nothing. Takes all of them or refuses: an array that has no place
in the module, one that is missing, another shape, NaN. docs/decisions/names-of-other-libraries.md says why.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import numpy as np

from ..errors import ConfigError, StateError, did_you_mean
from ..learning.rl_module import RLModuleSpec
from . import sb3
from .foreign_arrays import Converted, ForeignArrays, Trained, check_kind, load_into, module_of
from .weight_maps import CLEANRL_HARMLESS, RLLIB_HARMLESS, convert_cleanrl, convert_rllib

__all__ = ["import_weights"]

_WHOSE: Final = {"cleanrl": "the agent of CleanRL", "rllib": "the module of RLlib", "sb3": sb3.WHOSE}
_HARMLESS: Final = {"cleanrl": CLEANRL_HARMLESS, "rllib": RLLIB_HARMLESS, "sb3": sb3.HARMLESS}
#: Beginnings of the names of what acts, by another library's names: all else is a critic's.
_ACTS: Final = {
    "rllib": ("encoder.", "pi.", "pi_encoder."),
    "cleanrl": ("actor", "network.", "lstm."),
    "sb3": ("action_net.", "actor.", "features_extractor.", "log_std", "mlp_extractor.policy_net.", "pi_features"),
}
#: And by our names.
_OWN_CRITICS: Final = ("vf", "qf")


def import_weights(
    arrays: Mapping[str, np.ndarray],
    learner: Trained,
    *,
    source: str,
    module_id: str | None = None,
    policy_only: bool = False,
    normalize_actions: bool = True,
) -> dict[str, object]:
    """Load the weights of another library's usual networks into a learner.

    The arrays are those of ``{name: tensor.detach().cpu().numpy() for name, tensor in network.state_dict().items()}``,
    or of RLlib's ``RLModule.get_state()``. Shapes do not tell activations, strides of convolutions and what
    observations were divided by: give the learner's ``model`` those of the network (docs/interop.md has usual ones).

    Args:
        arrays: name -> numpy array, of one module.
        learner: a Learner, LearnerGroup or Algorithm, for the same spaces and network sizes.
        source: whose names they are: ``"rllib"`` (default modules of PPO, IMPALA, APPO and SAC), ``"cleanrl"``
            (agents of the PPO scripts) or ``"sb3"`` (PPO, A2C, SAC; ``model.policy.state_dict()``).
        module_id: which module; the only one if left out.
        policy_only: take what acts and leave the critic: the learner's own keeps its values.
        normalize_actions: RLlib's setting of that name, True by default there: its PPO then gives actions on [-1, 1]
            where they are bounded. For ``source="rllib"``.

    Returns:
        ``{"algorithm": "ppo" or "sac", "parameters": number of arrays taken, "ignored": names not used}``.

    Raises:
        ConfigError: an unknown source, no arrays of numpy, or a module of another kind.
        StateError: an array has no place in the module, is missing, has another shape or is not finite; or the network
            has no counterpart here. Says which. Nothing has changed.
    """
    if source not in _WHOSE:
        raise ConfigError(f"source={source!r} is not known.{did_you_mean(str(source), _WHOSE)}")
    given = ForeignArrays(_checked(arrays), _WHOSE[source])
    group: Any = getattr(learner, "learner_group", learner)
    if not hasattr(group, "module_specs"):
        raise ConfigError(f"import_weights takes a Learner, LearnerGroup or Algorithm; got {type(learner).__name__}")
    module_id = module_of(group, module_id)
    spec, state = group.module_specs[module_id], group.get_state()
    own = state["rl_module"][module_id]
    is_sac = given.has("pi_encoder.", "actor.latent_pi.")
    check_kind(own, is_sac=is_sac, what=f"{given.whose} is one", module_id=module_id)
    ignored: list[str] = []
    if policy_only:
        ignored = [name for name in given if not name.startswith(_ACTS[source]) or name.startswith(_CRITICS)]
        given = ForeignArrays({name: given.arrays[name] for name in given if name not in ignored}, given.whose)
    converted = _converted(
        given, source, spec, is_sac=is_sac, policy_only=policy_only, normalize_actions=normalize_actions
    )
    ignored += given.leftovers(_HARMLESS[source])
    keeps = _OWN_CRITICS if policy_only else ()
    load_into(group, state, module_id, converted, whose=given.whose, keeps=keeps)
    return {
        "algorithm": "sac" if is_sac else "ppo",
        "parameters": converted.num_arrays,
        "ignored": sorted(ignored),
    }


#: Beginnings of critics' names that begin as an actor's do.
_CRITICS: Final = ("encoder.critic_encoder.",)


def _converted(
    given: ForeignArrays, source: str, spec: RLModuleSpec, *, is_sac: bool, policy_only: bool, normalize_actions: bool
) -> Converted:
    if source == "sb3":
        if is_sac:
            converted = sb3.convert_sac(given, spec.action_space)
            return replace(converted, targets=None) if policy_only else converted
        return Converted(sb3.convert_ppo(given, policy_only=policy_only))
    if source == "cleanrl":
        return Converted(convert_cleanrl(given, policy_only=policy_only))
    return Converted(convert_rllib(given, spec, policy_only=policy_only, normalize_actions=normalize_actions))


def _checked(arrays: object) -> dict[str, np.ndarray]:
    if not isinstance(arrays, Mapping) or not arrays:
        raise ConfigError(f"expected {{name: numpy array}} of one module, got {type(arrays).__name__}")
    checked = {}
    for name, value in arrays.items():
        if isinstance(value, Mapping):
            raise ConfigError(
                f"arrays[{name!r}] is a dict: expected {{name: numpy array}} of one module; of a state of several give "
                f"that of one, arrays[{name!r}] for instance"
            )
        if not isinstance(value, (np.ndarray, np.generic, int, float)) or np.asarray(value).dtype.kind not in "fiub":
            raise ConfigError(
                f"arrays[{name!r}] is {type(value).__module__}.{type(value).__name__}: expected a numpy array of "
                "numbers; of a tensor it is tensor.detach().cpu().numpy()"
            )
        array = np.asarray(value)
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise StateError("holds NaN or an infinity", path=str(name))
        checked[str(name)] = array
    return checked
