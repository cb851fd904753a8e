"""Settings: every refusal at once and in words, copies, freezing, plain data."""

from __future__ import annotations

import dataclasses
import pickle
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import msgpack
import numpy as np
import pytest
from hypothesis import given, strategies as st

import learner_core as lc
from learner_core import AlgorithmConfig, ConfigError, Learner, MultiRLModuleSpec, OptimizerSpec, RLModule, RLModuleSpec
from learner_core.config import FloatOrSchedule, Range, references


@dataclass
class ToyConfig(AlgorithmConfig):
    algorithm_name: ClassVar[str] = "toy"

    clip_param: Annotated[float, Range(above=0)] = 0.3
    """Half-width of the interval.

    Typical: 0.2."""

    entropy_coeff: Annotated[FloatOrSchedule, Range(0)] = 0.0
    """Weight of the entropy."""

    num_atoms: Annotated[int, Range(1)] = 1
    lr: Annotated[FloatOrSchedule, Range(0)] = 1e-3
    """Overridden default."""


def make_toy_env(env_config: dict[str, Any]) -> None:
    raise RuntimeError(f"no toys for {env_config}")


class ToyModule(RLModule):
    pass


class ToyLearner(Learner):
    pass


def test_the_contracts_example_sets_every_field() -> None:
    config = (
        AlgorithmConfig()
        .environment("CartPole-v1")
        .framework("torch", compile=None, precision="float32", device="auto", debug=False)
        .learners(num_learners=0, num_cpus_per_learner=1, num_gpus_per_learner=0, launcher="local",
                  collective="auto", max_requests_in_flight_per_learner=3, queue_full="block",
                  restart_failed_learners=False, timeout_s=10, learner_class=None)
        .env_runners(num_env_runners=0, num_envs_per_env_runner=8, rollout_fragment_length="auto", inference="auto")
        .training(lr=3e-4, gamma=0.99, train_batch_size=2048, minibatch_size=128, num_epochs=10, grad_clip=0.5,
                  grad_clip_by="global_norm", accumulate=1)
        .rl_module(model={"hidden": [64, 64], "activation": "tanh"})
        .multi_agent(policies=None, policy_mapping_fn=None, policies_to_train=None)
        .evaluation(interval=0, num_episodes=10).checkpointing(every=None, keep=2).debugging(seed=0)
    )  # fmt: skip
    changed = [name for name, item in config.settings().items() if getattr(config, name) != item.default]
    assert changed == ["env"]  # all the others are the defaults
    assert config.env == "CartPole-v1"


def test_settings_are_set_by_method_attribute_or_constructor() -> None:
    config = ToyConfig(lr=0.1).training(clip_param=1, entropy_coeff=[[0, 1], [100, 0]])
    config.num_atoms = 51
    assert (config.lr, config.clip_param, config.num_atoms) == (0.1, 1.0, 51)
    assert type(config.clip_param) is float
    assert config.entropy_coeff == [[0.0, 1.0], [100.0, 0.0]]
    assert repr(config) == ("ToyConfig(lr=0.1, clip_param=1.0, entropy_coeff=[[0.0, 1.0], [100.0, 0.0]], num_atoms=51)")


@pytest.mark.parametrize(
    ("method", "settings", "text"),
    [
        (
            "training",
            {"learning_rate": 1},
            r"SB3, CleanRL: learning_rate; here: \.training\(lr=\.\.\.\)",
        ),
        ("training", {"entropy_coef": 1}, "Did you mean 'entropy_coeff'"),
        ("training", {"num_learners": 1}, r"It belongs to \.learners\(num_learners=\.\.\.\)"),
        ("learners", {"num_lerners": 1}, "Did you mean 'num_learners'"),
        ("evaluation", {"evaluation_interval": 1}, "Did you mean 'interval', set by .evaluation"),
        ("debugging", {"qqq": 1}, r"\.debugging\(\) takes: seed\."),
        ("training", {"lr": "fast"}, "expected float or schedule .* got str 'fast'"),
        ("training", {"lr": True}, "got bool True"),
        ("training", {"lr": None}, "got None"),
        ("training", {"lr": -1e-3}, "expected float or schedule .* >= 0, got -0.001"),
        ("training", {"lr": float("nan")}, "finite"),
        ("training", {"lr": [[5, 1], [0, 2]]}, "timesteps must increase"),
        ("training", {"lr": [[0, 1], [10, -1]]}, ">= 0"),
        ("training", {"lr": [0.1, 0.2]}, "pair"),
        ("training", {"gamma": 1.01}, "expected float >= 0 and <= 1, got 1.01"),
        ("training", {"clip_param": 0}, "> 0"),
        ("training", {"num_atoms": 2.0}, "expected int >= 1, got float 2.0"),
        ("training", {"train_batch_size": 0}, ">= 1"),
        ("training", {"grad_clip_by": "norms"}, "one of 'global_norm', 'norm', 'value'.*Did you mean 'norm'"),
        ("training", {"optimizer": "adm"}, "Did you mean 'adam"),
        ("training", {"optimizer": {"kind": "adam", "epsilon": 1}}, "epsilon"),
        ("env_runners", {"rollout_fragment_length": "all"}, "'auto' or int"),
        ("learners", {"restart_failed_learners": 1}, "expected bool, got int 1"),
        ("learners", {"learner_class": "ToyLearner"}, "expected class or None"),
        ("rl_module", {"model": [64]}, "expected dict, got list"),
        ("multi_agent", {"policies_to_train": [1]}, "list of str or None"),
        ("environment", {"env": 3}, "str or callable or Environment or None"),
        ("framework", {"name": "trch"}, "no such plugin is registered. Did you mean 'torch'"),
        ("framework", {"compile": "yes"}, "bool or None"),
    ],
)
def test_a_wrong_setting_is_refused_and_changes_nothing(method: str, settings: dict[str, Any], text: str) -> None:
    config = ToyConfig()
    good = {"training": {"num_epochs": 3}, "debugging": {"seed": 3}, "learners": {"num_learners": 3}}.get(method, {})
    with pytest.raises(ConfigError, match=text):
        getattr(config, method)(**good, **settings)
    assert config == ToyConfig()


def test_attributes_are_checked_too() -> None:
    config = ToyConfig()
    with pytest.raises(ConfigError, match="here: "):
        config.learning_rate = 1
    with pytest.raises(ConfigError, match=r"ToyConfig\.training\(gamma=\.\.\.\)"):
        config.gamma = 2
    with pytest.raises(ConfigError, match="deleted"):
        del config.gamma
    with pytest.raises(ConfigError, match="clip_param"):
        ToyConfig(clip_param=-1)


def test_numbers_of_numpy_become_plain() -> None:
    config = ToyConfig().training(lr=np.float32(0.5), num_atoms=np.int64(3), gamma=np.array(0.5))
    assert [type(value) for value in (config.lr, config.num_atoms, config.gamma)] == [float, int, float]
    config.debug = np.bool_(True)
    assert config.debug is True


def test_a_missing_dataclass_decorator_is_noticed() -> None:
    class Forgetful(AlgorithmConfig):
        extra: int = 1

    with pytest.raises(ConfigError, match="write @dataclass above it"):
        Forgetful()


def test_traced_fields() -> None:
    config = ToyConfig().training(entropy_coeff=[[0, 1], [9, 0]], grad_clip=None)
    assert config.traced_fields() == ("lr", "gamma", "clip_param", "entropy_coeff")


def test_every_setting_has_a_docstring_a_type_and_a_method() -> None:
    for item in AlgorithmConfig.describe():
        assert item.doc, item.name
        assert item.expected
        assert callable(getattr(AlgorithmConfig, item.method))
    settings = ToyConfig.settings()
    assert settings["clip_param"].doc == "Half-width of the interval.\n\nTypical: 0.2."
    assert settings["num_atoms"].doc == ""
    assert settings["lr"].owner is ToyConfig and settings["lr"].default == 1e-3
    assert settings["clip_param"].expected == "float > 0"


def test_field_docs_survive_a_missing_source() -> None:
    namespace: dict[str, Any] = {"__name__": __name__}
    exec("@dataclass\nclass NoSource(ToyConfig):\n    a: int = 1", {**globals(), **namespace}, namespace)
    assert namespace["NoSource"].settings()["a"].doc == ""


def test_copies_share_no_container() -> None:
    config = ToyConfig()
    model = {"hidden": [8]}
    config.rl_module(model=model)
    twin = config.copy()
    model["hidden"].append(9)
    config.model["hidden"].append(10)
    assert twin.model == {"hidden": [8]} and twin != config
    assert ToyConfig().model == {"hidden": [64, 64], "activation": "tanh"}


def test_a_frozen_config_refuses_changes_and_its_copy_does_not() -> None:
    config = ToyConfig().freeze()
    assert config.is_frozen
    for change in (lambda: config.training(lr=1), lambda: setattr(config, "lr", 1.0)):
        with pytest.raises(ConfigError, match=r"frozen.*set_config"):
            change()
    assert config.copy().training(lr=1).lr == 1
    changed = config.replaced(lr=0.5)
    assert changed.is_frozen and changed.lr == 0.5 and config.lr == 1e-3


def test_freezing_checks_contents_and_combinations() -> None:
    with pytest.raises(ConfigError, match="debug"):
        ToyConfig().framework(compile=True, debug=True).freeze()
    with pytest.raises(ConfigError, match=r"'walkr' is not a policy. Did you mean 'walker'"):
        ToyConfig().multi_agent(policies=["walker"], policies_to_train=["walkr"]).freeze()
    config = ToyConfig().training(entropy_coeff=[[0, 1], [1, 0]])
    config.entropy_coeff[0][1] = -1
    with pytest.raises(ConfigError, match="entropy_coeff"):
        config.freeze()


def test_configs_pickle_and_are_not_hashable() -> None:
    config = ToyConfig(lr=0.5).freeze()
    twin = pickle.loads(pickle.dumps(config))
    assert twin == config and twin.is_frozen
    with pytest.raises(TypeError):
        hash(config)
    assert dataclasses.is_dataclass(config)


def test_optimizer_spec() -> None:
    assert ToyConfig().optimizer_spec() == OptimizerSpec("adam")
    spec = ToyConfig().training(optimizer={"kind": "sgd", "momentum": 0.9}).optimizer_spec()
    assert spec == OptimizerSpec("sgd", momentum=0.9)


def test_plain_data_round_trips_through_msgpack() -> None:
    config = (
        ToyConfig()
        .environment(make_toy_env, env_config={"size": np.int64(3), "goal": np.array([1.0, 2.0])})
        .learners(learner_class=ToyLearner)
        .training(lr=[[0, 1], [5, 0]])
    )
    plain = msgpack.unpackb(msgpack.packb(config.to_dict()), strict_map_key=False)
    again = AlgorithmConfig.from_dict(plain, import_modules=[__name__], env=make_toy_env)
    assert type(again) is ToyConfig
    assert again.env is make_toy_env and again.learner_class is ToyLearner
    assert again.env_config["size"] == 3 and again.env_config["goal"].tolist() == [1.0, 2.0]
    assert again.lr == [[0.0, 1.0], [5.0, 0.0]]


def test_spaces_are_portable() -> None:
    import gymnasium

    box = gymnasium.spaces.Box(-1, 1, (3,))
    config = ToyConfig().environment(observation_space=box, action_space=gymnasium.spaces.Discrete(2))
    again = ToyConfig.from_dict(msgpack.unpackb(msgpack.packb(config.to_dict())))
    assert again.observation_space == box and again.action_space == gymnasium.spaces.Discrete(2)


def test_module_specs_are_portable() -> None:
    import gymnasium

    one = RLModuleSpec(ToyModule, gymnasium.spaces.Discrete(3), gymnasium.spaces.Discrete(2), {"hidden": [4]})
    for spec in (one, MultiRLModuleSpec(rl_module_specs={"a": one, "b": RLModuleSpec()})):
        config = ToyConfig().rl_module(rl_module_spec=spec)
        plain = msgpack.unpackb(msgpack.packb(config.to_dict()))
        assert AlgorithmConfig.from_dict(plain, import_modules=[__name__]) == config
    plain = ToyConfig().rl_module(rl_module_spec=RLModuleSpec()).to_dict()
    plain["settings"]["rl_module_spec"]["fields"]["size"] = 3
    with pytest.raises(ConfigError, match=r"rl_module_spec: .*RLModuleSpec' cannot be made"):
        ToyConfig.from_dict(plain)


def test_what_a_module_is_there_for_is_stored_where_it_is_said() -> None:
    """Files of earlier versions have no such fields: what says nothing of them is stored as it was then."""
    plain = references.to_plain(RLModuleSpec())
    assert set(plain["fields"]) == {"module_class", "observation_space", "action_space", "model", "masked"}
    for spec in (
        RLModuleSpec(ToyModule, rows_of="default_policy"),
        RLModuleSpec(shares=["encoder.*"], shared_by=["a", "b"]),
    ):
        config = ToyConfig().rl_module(rl_module_spec=MultiRLModuleSpec({"x": spec}))
        again = AlgorithmConfig.from_dict(config.to_dict(), import_modules=[__name__]).rl_module_spec["x"]
        assert (again.rows_of, list(again.shares), list(again.shared_by)) == (
            spec.rows_of,
            list(spec.shares),
            list(spec.shared_by),
        )
    bad = ToyConfig().rl_module(rl_module_spec=RLModuleSpec(ToyModule, rows_of="a")).to_dict()
    bad["settings"]["rl_module_spec"]["fields"]["rows_of"] = ["a"]
    with pytest.raises(ConfigError, match="rows_of is not as it is to be"):
        AlgorithmConfig.from_dict(bad, import_modules=[__name__])


def test_what_has_no_name_must_be_given_again() -> None:
    plain = ToyConfig().environment(lambda env_config: None).to_dict()
    with pytest.raises(ConfigError, match=r"from_checkpoint\(path, env=\.\.\.\)"):
        ToyConfig.from_dict(plain)
    assert ToyConfig.from_dict(plain, env="CartPole-v1").env == "CartPole-v1"


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"schema": 3}, "newer version"),
        ({"class": "json:JSONDecoder", "algorithm": "json"}, "a file chooses no code"),
        ({"class": f"{__name__}:ToyLearner"}, "is not a subclass of AlgorithmConfig"),
        ({"class": 3}, "class: expected str, got int"),
        ({"settings": []}, "settings: expected Mapping, got list"),
        ({"settings": {"lrr": 1}}, "Did you mean 'lr'"),
        ({"settings": {"lr": "x"}}, "expected float"),
    ],
)
def test_foreign_plain_data_is_refused(change: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        AlgorithmConfig.from_dict({**ToyConfig().to_dict(), **change}, import_modules=[__name__])
    with pytest.raises(ConfigError, match="what to_dict"):
        AlgorithmConfig.from_dict({})


numbers = st.floats(0, 1e3, allow_nan=False)
schedules = st.lists(st.tuples(st.integers(0, 10**9), numbers), min_size=2, unique_by=lambda point: point[0]).map(
    lambda points: [list(point) for point in sorted(points)]
)


@given(
    lr=st.one_of(numbers, schedules),
    num_atoms=st.integers(1, 2**40),
    model=st.dictionaries(st.text(), st.one_of(st.integers(-(2**40), 2**40), st.text(), st.lists(st.booleans()))),
    seed=st.integers(0, 2**63 - 1),
)
def test_any_valid_config_round_trips(lr: Any, num_atoms: int, model: dict[str, Any], seed: int) -> None:
    config = ToyConfig(lr=lr, num_atoms=num_atoms, model=model, seed=seed)
    plain = msgpack.unpackb(msgpack.packb(config.to_dict()))
    assert ToyConfig.from_dict(plain) == config == config.copy().freeze()


@given(value=st.one_of(st.text(), st.none(), st.binary(), st.booleans(), st.lists(st.text(), min_size=1)))
def test_no_value_of_another_type_is_a_rate(value: Any) -> None:
    with pytest.raises(ConfigError):
        ToyConfig().training(lr=value)


@pytest.mark.parametrize(
    ("earlier", "config"),
    [
        ("learner_core.config.algorithm_config:AlgorithmConfig", lc.AlgorithmConfig),
        ("learner_core.config.off_policy_config:OffPolicyConfig", lc.OffPolicyConfig),
    ],
)
def test_files_of_earlier_versions_name_our_classes_as_they_were_called(earlier: str, config: type) -> None:
    plain = config().training(lr=0.5).to_dict()
    read = lc.AlgorithmConfig.from_dict({**plain, "class": earlier})
    assert type(read) is config and read.lr == 0.5
