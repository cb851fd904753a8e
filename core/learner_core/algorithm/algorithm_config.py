"""What users set an algorithm up with: its settings, and the methods that build something from them.

An algorithm subclasses :class:`AlgorithmConfig`, adds dataclass fields (each with a docstring under it) and names its
classes; ``.training()`` accepts the new fields at once::

    @dataclass
    class PPOConfig(AlgorithmConfig):
        algorithm_name: ClassVar[str] = "ppo"
        clip_param: Annotated[float, Range(above=0)] = 0.3
        \"\"\"Half-width of the interval the probability ratio is clipped to. Typical: 0.1 to 0.3.\"\"\"
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..config.algorithm_settings import AlgorithmSettings

if TYPE_CHECKING:
    from ..group.learner_group import LearnerGroup
    from ..learning.learner import Learner
    from .algorithm import Algorithm

__all__ = ["AlgorithmConfig"]


@dataclass(kw_only=True, repr=False, eq=False)
class AlgorithmConfig(AlgorithmSettings):
    """Settings of an algorithm, and what is built from them. Each method that sets some returns the config.

    Every setting is also an attribute of the field's name: ``config.lr = 1e-3`` is checked like
    ``config.training(lr=1e-3)``. Building something from a config freezes a copy, so the original stays yours.
    """

    def get_learner_class(self) -> type[Learner]:
        """The class to build: ``learner_class`` if set, else the algorithm's, else ``learner_core.Learner``."""
        if self.learner_class is None and self.default_learner_class is None:
            from ..learning.learner import Learner

            return Learner
        return super().get_learner_class()

    def build_learner(self, env: object = None) -> Learner:
        """Build one Learner in this process from a frozen copy of this config.

        Args:
            env: An environment to take the spaces from; None: the one named by :meth:`environment`.

        Returns:
            The Learner, built.
        """
        return self.get_learner_class()(config=self.frozen_copy(env), env=env)

    def build_learner_group(self, env: object = None) -> LearnerGroup:
        """Build a LearnerGroup of ``num_learners`` learners from a frozen copy of this config.

        Args:
            env: As for :meth:`build_learner`.

        Returns:
            The LearnerGroup, ready.
        """
        from ..group.learner_group import LearnerGroup

        return LearnerGroup(config=self.frozen_copy(env), env=env)

    def build(self) -> Algorithm:
        """Build the Algorithm from a frozen copy of this config.

        Returns:
            The Algorithm: ``train() evaluate() save(path) restore(path) stop()``.
        """
        from .algorithm import build_algorithm

        return build_algorithm(self)
