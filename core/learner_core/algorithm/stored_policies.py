"""The policies in a checkpoint: what modules they are, and their weights, without a learner and without an environment.

Needs a checkpoint's tree, checked. Refuses what it names and is not trusted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np

from .. import spaces
from ..config.algorithm_settings import AlgorithmSettings
from ..learning.resolve import resolve_modules
from ..learning.rl_module import MultiRLModuleSpec, RLModuleSpec
from ..maths.action_masks import MASK
from ..state.schema import under
from ..state.tree import Tree

__all__ = ["stored_specs", "stored_weights"]

#: Settings that say nothing of the modules: a function among them, which no file holds, does not matter.
_NOT_OF_MODULES = ("env", "env_config", "learner_class", "policy_mapping_fn")


def stored_specs(tree: Tree, *, import_modules: Iterable[str] = ()) -> dict[str, RLModuleSpec] | None:
    """The modules of a checkpoint in the spaces that it holds: no environment is made or looked up for them.

    Args:
        tree: the checkpoint.
        import_modules: modules whose classes it may name.

    Returns:
        module id -> complete specification; None of a checkpoint of an earlier version, which has no spaces.

    Raises:
        ConfigError: it names what is not trusted, or what could not be stored.
    """
    stored = tree["state"].get("algorithm", {}).get("spaces")
    if stored is None:
        return None
    defaults = AlgorithmSettings.settings()
    left_out = {name: defaults[name].default for name in _NOT_OF_MODULES}
    config = AlgorithmSettings.from_dict(tree["config"], import_modules=import_modules, **left_out)
    runner = tree["state"].get("env_runner") or {}
    # A mask that environments show is no part of the spaces that policies see.
    masked = bool(config.action_mask_in_info) or (isinstance(shown := runner.get("obs"), Mapping) and MASK in shown)
    config.action_mask_in_info = False
    own = config.rl_module_spec
    named = dict(own.rl_module_specs) if isinstance(own, MultiRLModuleSpec) else {}
    for module_id in stored:
        own_spec = config.policies.get(module_id) if isinstance(config.policies, Mapping) else None
        named.setdefault(module_id, own_spec or (own if isinstance(own, RLModuleSpec) else RLModuleSpec()))
    with under("state/algorithm/spaces"):
        specs = {
            module_id: replace(
                named[module_id],
                observation_space=spaces.from_plain(pair["observation_space"]),
                action_space=spaces.from_plain(pair["action_space"]),
                masked=named[module_id].masked or masked,
            )
            for module_id, pair in stored.items()
        }
    policies = config.policies if isinstance(config.policies, Mapping) else {}
    given = {**{mid: spec for mid, spec in policies.items() if spec is not None}, **named}
    # Those that play nobody have the spaces of the modules that they are there for.
    others = {mid: spec for mid, spec in given.items() if mid not in specs and not spec.acts}
    return resolve_modules(config, None, MultiRLModuleSpec({**specs, **others}))


def stored_weights(state: Tree) -> dict[str, dict[str, np.ndarray]]:
    """module id -> name -> array, buffers too, of a learner's state."""
    buffers = state.get("buffers", {})
    named = {mid: {**params, **buffers.get(mid, {})} for mid, params in state["rl_module"].items()}
    return {mid: {name: np.asarray(value) for name, value in params.items()} for mid, params in named.items()}
