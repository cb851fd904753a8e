"""Policy and Q networks of soft actor-critic."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from learner_core.errors import ConfigError, SpaceError
from learner_core.learning.actor_critic import PolicyModule, Trunk
from learner_core.learning.recurrent import RECURRENT_KEYS
from learner_core.learning.shown_parts import policy_reads
from learner_core.maths.distribution_base import Distribution
from learner_core.maths.distributions import distribution_for
from learner_core.maths.unit_box import UnitBox
from learner_core.xp import Array, Arrays, ArrayTree

__all__ = ["SACModule"]


class SACModule(PolicyModule):
    """A tanh-squashed Gaussian policy ``pi`` and Q networks ``qf`` and ``qf_twin``; the Q networks have targets.

    Actions are in the action space's unit wherever they come in or go out. The density and the Q networks' input are on
    [-1, 1], so that what is learned does not depend on that unit.

    Settings (``model``) are PolicyModule's without a memory, and ``twin_q``. ``hidden``, ``activation``, ``layer_norm``
    and ``init`` may differ: ``{"pi": ..., "qf": ...}``, where ``qf`` is either Q network.
    """

    targets: tuple[str, ...] = ("qf*",)
    model_keys: ClassVar[tuple[str, ...]] = (
        *(key for key in PolicyModule.model_keys if key not in RECURRENT_KEYS),
        "twin_q",
    )

    def setup(self) -> None:
        from gymnasium.spaces import Box

        if not isinstance(self.action_space, Box):
            raise SpaceError(f"SAC needs a bounded Box of actions, got {self.action_space}; PPO takes discrete ones.")
        if self.model.get("recurrent") is not None:
            raise ConfigError(
                f"model={{'recurrent': {self.model['recurrent']!r}}}: SAC learns from single steps of its replay "
                "buffer and has no memory; PPO, IMPALA and APPO have"
            )
        if self.model.get("free_log_std") is None:
            self.model["free_log_std"] = False
        init = self.model.get("init")
        # Torch's uniform initialisation: orthogonal Q heads start too large for a bootstrapped target.
        if init is None:
            self.model["init"] = "uniform"
        elif isinstance(init, Mapping):
            self.model["init"] = {**dict.fromkeys(("pi", "qf"), "uniform"), **init}
        super().setup()
        low, high = (np.asarray(bound, np.float64).ravel() for bound in (self.action_space.low, self.action_space.high))
        self.action_box = UnitBox.of(tuple(low.tolist()), tuple(high.tolist()))

    def _network_names(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        return ("pi", "qf"), ()

    def _setup_networks(self) -> None:
        num_actions, space = int(np.prod(self.action_space.shape)), self.observation_space
        reads = policy_reads(self.model, space)
        self.pi = Trunk("pi", space, self.networks.of("pi"), self.num_policy_outputs, reads=reads)
        names, own = ("qf", "qf_twin") if self._chosen("twin_q", True) else ("qf",), self.networks.of("qf")
        self.critics = [Trunk(name, space, own, 1, extra=num_actions) for name in names]

    def init(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        params = super().init(rng)
        for critic in self.critics:
            params.update(critic.init(rng))
        return params

    def q(self, params: Arrays, obs: ArrayTree, actions: Array) -> list[Array]:
        """Q values, one float[B] per network, of actions [B, *shape] in the action space's own unit."""
        return self.unit_q(params, obs, self.unit_actions(actions))

    def unit_actions(self, actions: Array) -> Array:
        """float[B, A] in [-1, 1] of actions [B, *shape] in the action space's own unit."""
        xp = self.xp
        return self.action_box.to_unit(xp, xp.reshape(actions, (xp.shape(actions)[0], -1)))

    def unit_q(self, params: Arrays, obs: ArrayTree, unit: Array) -> list[Array]:
        """As ``q``, of actions float[B, A] in [-1, 1]: in a narrow precision they are exact, whatever the bounds."""
        xp = self.xp
        return [xp.squeeze(critic.apply(xp, params, obs, unit), -1) for critic in self.critics]

    def get_train_action_dist_cls(self) -> type[Distribution]:
        return distribution_for(
            self.action_space, self.xp, squash=True, log_std_range=self._log_std_range(), unit_density=True
        )
