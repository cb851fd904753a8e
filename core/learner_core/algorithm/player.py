"""A checkpoint that plays and does not learn: environment runners and weights, on numpy, without learners.

Needs modules that compute over ``xp``. No framework is imported. Refuses networks of one framework, and to train.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

import numpy as np

from .. import numpy_xp
from ..config.algorithm_settings import AlgorithmSettings
from ..config.trust import Trust
from ..errors import ConfigError, StateError
from ..learning.resolve import resolve_modules
from ..learning.rl_module import RLModuleSpec
from ..sampling.make_runner import Weights
from ..sampling.runner_group import EnvRunnerGroup
from ..state.atomic import PathLike
from ..state.schema import under
from ..state.tree import Tree
from .algorithm import Algorithm, stored_config, stored_tree
from .evaluations import Results
from .restoring import check_outline
from .stored_modules import settle_modules
from .stored_policies import stored_weights
from .stored_spaces import check_spaces, in_new_episodes

__all__ = ["Player"]


class Player(Algorithm):
    """An Algorithm of which ``evaluate`` and ``runner`` are there; its weights stay as they are.

    Args:
        config: frozen configuration of the run, with the environment to play in.
        specs: module id -> complete specification.
        weights: module id -> name -> array.

    Raises:
        ConfigError: a module is a network of one framework.
    """

    def __init__(self, config: AlgorithmSettings, specs: Mapping[str, RLModuleSpec], weights: Weights) -> None:
        self._begin(config)
        for module_id, spec in specs.items():
            if not spec.is_neutral:
                raise ConfigError(
                    f"module {module_id!r} is a network of one framework, {spec.module_class!r:.80}, and numpy cannot "
                    "compute it: open the checkpoint with that framework's backend"
                )
        self._group: Any = _Weights(specs, weights)
        self.env_runners: EnvRunnerGroup = EnvRunnerGroup(config, specs)
        self.sync_weights()

    @classmethod
    def from_checkpoint(
        cls,
        path: PathLike,
        *,
        framework: str | None = None,
        import_modules: Iterable[str] = (),
        override_spaces: bool = False,
        **settings: object,
    ) -> Player:
        """As :meth:`Algorithm.from_checkpoint`, to play: episodes and seeds go on as they would there.

        Raises:
            StateError, ConfigError: as there, and if there is no environment to play in.
        """
        tree = stored_tree(path)
        state = tree["state"]
        with under("state"):
            check_outline(state, is_open=True)
        settle_modules(state, Trust.of(import_modules))
        settings = {**settings, "num_env_runners": 0, "checkpoint_folder": None, "checkpoint_every": None}
        config = stored_config(tree, import_modules=import_modules, **settings).freeze()
        if config.env is None:
            raise ConfigError("there is no environment to play in: give one by env= (--env NAME)")
        player = cls(config, resolve_modules(config, None, None), stored_weights(state["learner"]))
        try:
            player._go_on_playing(state, override_spaces=override_spaces)
        except BaseException:
            player.stop()
            raise
        return player

    def _go_on_playing(self, state: Tree, *, override_spaces: bool) -> None:
        """Take over what runners know: normalisers, seeds, how many evaluations there were."""
        anew = check_spaces(self, state["algorithm"].get("spaces"), override=override_spaces)
        self._check_weights()
        part = state["ranks"][0] if "ranks" in state else state
        if part["env_runner"] is not None:
            runners = self._playing
            stored = {"local": part["env_runner"], **(part["env_runners"] or {})}
            if anew:
                stored = in_new_episodes(runners.local, stored)
            runners.state_schema(local_path="env_runner").check(stored, "env_runners")
            runners.set_state(stored)
        self.iteration: int = int(state["algorithm"]["iteration"])
        self.num_env_steps_sampled_lifetime: int = int(state["algorithm"]["num_env_steps_sampled_lifetime"])
        self.sync_weights()

    def _check_weights(self) -> None:
        """Refuse weights of other networks than the environment here needs."""
        weights = self._group.get_weights()
        for module_id, spec in self._group.module_specs.items():
            module = spec.build(numpy_xp)
            own = {**module.init(np.random.default_rng(0)), **module.init_buffers()}
            given = weights.get(module_id, {})
            for name in sorted(set(own) | set(given)):
                shapes = [np.shape(arrays[name]) if name in arrays else None for arrays in (own, given)]
                if shapes[0] != shapes[1]:
                    raise StateError(
                        f"the module here has shape {shapes[0]}, the checkpoint {shapes[1]}",
                        path=f"learner/rl_module/{module_id}/{name}",
                    )

    @property
    def _playing(self) -> EnvRunnerGroup:
        assert self.env_runners is not None
        return self.env_runners

    def train(self) -> Results:
        """Refused."""
        self._refuse()

    def save(self, path: PathLike) -> None:
        """Refused."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise ConfigError(
            "this checkpoint was opened to play, on a backend that cannot train: open it with another one"
        )


class _Weights:
    """What an Algorithm asks of its learners while nobody learns."""

    collective = ""
    ranks = None
    num_changes = 0
    num_updates_asked = 0

    def __init__(self, specs: Mapping[str, RLModuleSpec], weights: Weights) -> None:
        self.module_specs = dict(specs)
        self._weights = {module_id: dict(arrays) for module_id, arrays in weights.items()}

    def get_weights(self) -> dict[str, dict[str, np.ndarray]]:
        return self._weights

    def shutdown(self) -> None:
        """There is nothing to end."""
