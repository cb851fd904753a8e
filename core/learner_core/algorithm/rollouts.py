"""What an algorithm does with fragments before anything is learned from them.

Needs learners, and a runner's fragments. Refuses fragments that come back as something else.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..config.agents import ONLY_MODULE
from ..config.algorithm_settings import AlgorithmSettings
from ..errors import ConfigError, did_you_mean
from ..group.learner_group import LearnerGroup
from ..learning.shared_parameters import completed
from ..plugins.containment import shown
from ..sampling.rollout import Rollout, per_module
from ..xp import Columns
from .policies import ModuleFunction

__all__ = ["RolloutHooks"]


class RolloutHooks:
    """The part of an Algorithm that looks at what was sampled."""

    config: AlgorithmSettings

    @property
    def learner_group(self) -> LearnerGroup:
        """The learners."""
        raise NotImplementedError

    def process_rollout(self, rollout: Rollout, *, module_id: str) -> Rollout:
        """What is learned from a fragment; the fragment itself, unless an algorithm overrides this.

        Called in this process with every fragment of a module before advantages are computed, sequences cut or rows put
        into a replay buffer: the place for rewards of one's own (curiosity, shaping). :meth:`module_outputs` computes
        with the newest weights.

        Args:
            rollout: ``columns`` [T, N, ...], ``next_obs`` among them; see ``Rollout``. Its arrays may be changed in
                place: nobody else has them.
            module_id: the module whose experience it is; "default_policy" where there is one agent.

        Returns:
            A rollout of the same length.
        """
        return rollout

    def module_outputs(self, module_id: str, batch: Columns) -> dict[str, np.ndarray]:
        """What a module's ``forward_train`` answers with the learners' newest weights; nothing is learned.

        In numpy, or on the backend where the module is a network of its framework.

        Args:
            module_id: of any module, whether it acts or not.
            batch: the columns that it reads, [B, ...], dict observations nested; normalised as a learner sees them.

        Raises:
            ConfigError: there is no such module.
        """
        specs = self.learner_group.module_specs
        if module_id not in specs:
            raise ConfigError(f"there is no module {module_id!r}.{did_you_mean(module_id, specs)}")
        weights = completed(specs, self.learner_group.get_weights())[module_id]
        return ModuleFunction(self.config, specs[module_id])(weights, batch)

    def processed(self, rollout: Rollout | Mapping[str, Rollout]) -> Rollout | Mapping[str, Rollout]:
        """A fragment, or {module_id: fragment}, through :meth:`process_rollout`."""
        if type(self).process_rollout is RolloutHooks.process_rollout:
            return rollout
        parts = {mid: self.process_rollout(part, module_id=mid) for mid, part in per_module(rollout).items()}
        for module_id, part in per_module(rollout).items():
            if not isinstance(parts[module_id], Rollout) or parts[module_id].num_steps != part.num_steps:
                raise ConfigError(
                    f"{type(self).__name__}.process_rollout returned {shown(parts[module_id])} for {module_id!r}: "
                    f"expected a Rollout of {part.num_steps} steps, the one that it was given for instance"
                )
        return parts[ONLY_MODULE] if isinstance(rollout, Rollout) else parts
