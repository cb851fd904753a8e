"""What is exported: modules and weights out of a Learner, a LearnerGroup, an Algorithm, or a file any of them wrote."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .. import numpy_xp
from ..algorithm.stored_policies import stored_specs, stored_weights
from ..algorithm.stored_spaces import SPACES
from ..errors import ConfigError, LearnerCoreError, StateError
from ..learning.batch import nested_columns
from ..learning.resolve import resolve_modules
from ..learning.rl_module import RLModule, RLModuleSpec
from ..learning.shared_parameters import completed
from ..maths.action_inputs import PREV_ACTION, PREV_REWARD, ActionInputs
from ..sampling.normalize import MOMENTS, RunningNormalizer
from ..state.files import load_state
from ..state.folder import CheckpointFolder
from ..state.regular import is_there
from ..state.schema import Anything, Array, MapOf, Nullable, Record
from ..state.tree import Tree
from ..xp import Arrays, ArrayTree, Namespace, Outputs
from .foreign_arrays import Trained

__all__ = ["ExportedPolicy", "nest", "read_source", "require", "sample_state"]

_ALGORITHM = "learner_core/algorithm"


@dataclass
class ExportedPolicy:
    """One module and its weights.

    Attributes:
        module_id: its id.
        spec: complete ``RLModuleSpec``; ``None`` from a file that holds a Learner's state alone.
        params: canonical name -> array; buffers too.
        refusal: why a checkpoint's ``spec`` could not be rebuilt; ``""`` where it was, or where there is none.
        normalizer: path of a float leaf of the observations -> (mean, scale, clip): the policy sees
            ``clip((obs - mean) * scale, -clip, clip)``.
    """

    module_id: str
    spec: RLModuleSpec | None
    params: dict[str, np.ndarray]
    normalizer: dict[str, tuple[np.ndarray, np.ndarray, float]] = field(default_factory=dict)
    refusal: str = ""

    def require_spec(self, to: str) -> RLModuleSpec:
        """Refuse where the structure is not known."""
        if self.spec is None:
            why = "a Learner's state file does not have it: export the Learner itself, or a checkpoint of an Algorithm"
            if self.refusal:
                why = f"this checkpoint's cannot be rebuilt here: {self.refusal}"
            raise ConfigError(f"to={to!r} needs the module's structure; {why}")
        return self.spec

    def require_neutral(self, to: str) -> RLModuleSpec:
        """Refuse a network of one framework."""
        spec = self.require_spec(to)
        if not spec.is_neutral or not spec.module_class.portable:
            raise ConfigError(
                f"to={to!r} takes modules written over xp; {spec.module_class!r} is one framework's own: export "
                "it to that framework and use its own exporter"
            )
        return spec

    def normalized(self, xp: Namespace, obs: ArrayTree, path: str = "obs") -> ArrayTree:
        """Observations as the module sees them."""
        if isinstance(obs, Mapping):
            return {key: self.normalized(xp, value, f"{path}/{key}") for key, value in obs.items()}
        if path not in self.normalizer:
            return obs
        mean, scale, clip = self.normalizer[path]
        scaled = (xp.astype(obs, xp.float32) - mean.astype(np.float32)) * scale.astype(np.float32)
        return xp.clip(scaled, -clip, clip)

    def act(self, module: RLModule, params: Arrays, obs: ArrayTree, state_in: Arrays | None = None) -> Outputs:
        """What a policy answers, over any namespace.

        Args:
            module: built from ``spec``.
            params: arrays by name, of the module's namespace.
            obs: observations [N, ...] as the module sees them (``normalized``).
            state_in: leaves [N, ...] of a policy with a memory; zeros at an episode's start.

        Returns:
            ``actions`` in the action space's own units: the module's own if it gives any, as a run acts by them, else
            the most likely ones; ``action_dist_inputs`` and ``vf_preds`` where the module gives them; ``state_out``,
            the next step's ``state_in``, where it has a memory. Of what a memory is told of the step before,
            ``prev_action`` is these actions (who takes others puts them there, encoded in the same way), and
            ``prev_reward`` [N, 1] is missing: who steps the environment has it.

        Raises:
            ConfigError: the module gives neither actions nor what they are drawn from.
        """
        batch = {"obs": obs, **({"state_in": state_in} if state_in else {})}
        outputs = module.forward_inference(params, batch)
        found: Outputs = {
            name: outputs[name] for name in ("action_dist_inputs", "vf_preds", "state_out") if name in outputs
        }
        own, xp = outputs.get("actions"), module.xp
        if own is not None:
            is_box = type(module.action_space).__name__ == "Box"
            return self._acted(module, xp.astype(own, xp.float32 if is_box else xp.int64), found)
        if "action_dist_inputs" not in outputs:
            raise ConfigError(
                f"module {self.module_id!r}: forward_inference returned {', '.join(sorted(outputs)) or 'nothing'}: "
                "expected 'action_dist_inputs' or 'actions' to act by"
            )
        distribution = module.get_inference_action_dist_cls().from_logits(outputs["action_dist_inputs"])
        return self._acted(module, distribution.mode(), found)

    def _acted(self, module: RLModule, actions: ArrayTree, found: Outputs) -> Outputs:
        """The answer, with what the actions are to the next step."""
        out = {"actions": actions, **found}
        state = out.get("state_out", {})
        if PREV_ACTION in state or PREV_REWARD in state:
            out["state_out"] = {leaf: value for leaf, value in state.items() if leaf != PREV_REWARD}
        if PREV_ACTION in state:
            out["state_out"][PREV_ACTION] = ActionInputs(module.action_space).encode(
                module.xp, actions, module.xp.float32
            )
        return out

    def answer(self, obs: ArrayTree, state_in: Arrays | None = None) -> Outputs:
        """What numpy computes for observations as an environment gives them; see :meth:`act`."""
        answers = self.act(
            self.require_spec("numpy").build(numpy_xp), self.params, self.normalized(numpy_xp, obs), state_in
        )
        state = {leaf: np.asarray(value) for leaf, value in answers.pop("state_out", {}).items()}
        found: Outputs = {name: np.asarray(value) for name, value in answers.items()}
        return {**found, "state_out": state} if state else found


def sample_state(module: RLModule, rows: int) -> dict[str, np.ndarray]:
    """leaf -> random values [rows, ...] to try a module with a memory with; ``{}`` without one."""
    rng = np.random.default_rng(0)
    start = module.initial_state()
    return {leaf: rng.uniform(-1, 1, (rows, *value.shape)).astype(value.dtype) for leaf, value in start.items()}


def read_source(source: str | Path | Trained, *, import_modules: Iterable[str] = ()) -> list[ExportedPolicy]:
    """The policies in ``source``.

    Args:
        source: a Learner, LearnerGroup or Algorithm, or the path of a checkpoint, a run's folder or a state file.
        import_modules: modules whose classes a checkpoint may name.

    Raises:
        ConfigError: it is none of these.
        StateError: the file cannot be read, or holds something else.
    """
    if isinstance(source, (str, Path)):
        return _from_file(Path(source), import_modules)
    given: Any = source
    if hasattr(given, "get_module_state"):
        return _of(given.module_specs, given.get_module_state())
    if hasattr(given, "get_weights") and hasattr(given, "module_specs"):
        return _of(given.module_specs, given.get_weights())
    if hasattr(given, "learner_group"):
        runner = getattr(given, "env_runner", None)
        normalizer = None if runner is None else runner.normalizer
        return _of(given.learner_group.module_specs, given.learner_group.get_weights(), normalizer)
    raise ConfigError(
        f"export takes a Learner, LearnerGroup or Algorithm, or the path of a checkpoint; got {type(source).__name__}"
    )


def _of(
    specs: Mapping[str, RLModuleSpec],
    weights: Mapping[str, Mapping[str, np.ndarray]],
    normalizer: RunningNormalizer | None = None,
) -> list[ExportedPolicy]:
    found = {}
    if normalizer is not None:
        for path, moments in normalizer.moments.items():
            scale = 1.0 / np.sqrt(moments.variance + normalizer.epsilon)
            found[path] = (np.asarray(moments.mean), scale, float(normalizer.clip))
    full = completed(specs, weights)
    return [ExportedPolicy(mid, specs.get(mid), params, found) for mid, params in full.items()]


def _from_file(path: Path, import_modules: Iterable[str]) -> list[ExportedPolicy]:
    if is_there(path, folder=True):
        # The newest checkpoint of a run.
        folders = [folder for folder in (path / "checkpoints", path) if is_there(folder, folder=True)]
        found = [one for folder in folders for one in CheckpointFolder(folder).checkpoints()[-1:]]
        if not found:
            raise StateError(f"{path}: a folder without a checkpoint (checkpoint-*.lcstate)")
        path = Path(found[0].path)
    tree = load_state(path)
    if isinstance(tree, dict) and tree.get("format") == _ALGORITHM:
        from ..config.algorithm_settings import AlgorithmSettings

        _CHECKPOINT.check(tree, "")
        normalizer = _normalizer(tree["state"].get("env_runner"))
        weights = stored_weights(tree["state"]["learner"])
        try:
            specs = stored_specs(tree, import_modules=import_modules)
            if specs is None:
                specs = resolve_modules(
                    AlgorithmSettings.from_dict(tree["config"], import_modules=import_modules), None, None
                )
        except LearnerCoreError as error:
            # Weights alone can be had without: of a network that has no name to find it by, for instance.
            policies = _of({}, weights, normalizer)
            for policy in policies:
                policy.refusal = str(error)
            return policies
        return _of(specs, weights, normalizer)
    if isinstance(tree, dict) and "rl_module" in tree:
        _LEARNER.check(tree, "")
        return _of({}, stored_weights(tree))
    raise StateError(f"{path}: is a state file, but neither of an Algorithm nor of a Learner")


#: What is read of a learner's state and of a checkpoint, whatever its modules are.
_LEARNER = Record(
    {"rl_module": MapOf(MapOf(Array(None, None))), "buffers": MapOf(MapOf(Array(None, None, finite=False)))},
    optional=("buffers",),
    is_open=True,
)
_RUNNER = Record(
    {"observations": Nullable(Record({"moments": MapOf(MOMENTS)}))}, optional=("observations",), is_open=True
)
_CHECKPOINT = Record(
    {
        "config": MapOf(Anything()),
        "state": Record(
            {
                "learner": _LEARNER,
                "env_runner": Nullable(_RUNNER),
                "algorithm": Record({"spaces": SPACES}, ("spaces",), is_open=True),
            },
            ("env_runner", "algorithm"),
            is_open=True,
        ),
    },
    is_open=True,
)


def _normalizer(runner: Tree | None) -> RunningNormalizer | None:
    if not runner or not runner.get("observations"):
        return None
    means = {path: np.asarray(moments["mean"]) for path, moments in runner["observations"]["moments"].items()}
    normalizer = RunningNormalizer(nest(means))
    normalizer.set_state(runner["observations"])
    return normalizer


def nest(arrays: Arrays) -> ArrayTree:
    """``{"obs/a/b": x}`` as nested dicts; of ``obs`` alone the array."""
    return nested_columns(arrays).get("obs", {})


def require(package: str, extra: str) -> None:
    """Refuse where an optional package is missing, with the extra that brings it."""
    try:
        importlib.import_module(package)
    except ImportError as error:
        raise ConfigError(f"{package} is not installed: pip install 'learner-core[{extra}]'") from error
