"""The names of RLlib, Stable-Baselines3 and CleanRL, and what each is here: one table.

``foreign_names`` answers by it, and docs/migrating.md prints it. A test holds that what it names exists here, that the
foreign names do not, and that the page has the table as it is. An answer that begins with a dash says that there is no
such thing. docs/decisions/names-of-other-libraries.md says why.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

__all__ = ["ALGORITHM", "CLASSES", "COMMANDS", "LEARNER", "METHODS", "OPTIONS", "SETTINGS", "Known"]


@dataclass(frozen=True)
class Known:
    """A name of another library.

    Args:
        library: whose: "RLlib", "SB3", "CleanRL", or several.
        settings: what it is here: names of fields; "model.hidden" is an entry of ``model``.
        off_policy: the same for algorithms with a replay buffer, where it differs there.
        words: what else is to be known, or, without settings, the whole answer.
    """

    library: str
    settings: tuple[str, ...] = ()
    off_policy: tuple[str, ...] = ()
    words: str = ""

    def fields(self, config: Any) -> tuple[str, ...]:
        """The settings of a config's class (or of a config) that it is."""
        if not self.settings:
            return ()
        table = config.settings()
        chosen = self.off_policy if self.off_policy and "buffer_capacity" in table else self.settings
        return tuple(name for name in chosen if name.partition(".")[0] in table)

    def here(self, config: Any, quote: str = "") -> str:
        """The answer in Python: ``.training(lr=...)``, and the words; ``quote`` is put around what is typed."""
        calls: dict[str, list[str]] = {}
        for name in self.fields(config):
            setting, _, key = name.partition(".")
            item = config.settings()[setting]
            value = f'{{"{key}": ...}}' if key else "..."
            calls.setdefault(item.method, []).append(f"{item.keyword}={value}")
        typed = " and ".join(f"{quote}.{method}({', '.join(given)}){quote}" for method, given in calls.items())
        return self._with_words(typed, config)

    def option(self, config: Any, value: str, quote: str = "") -> str:
        """The answer on a command line: ``--set lr=VALUE``, and the words; ``quote`` as for :meth:`here`."""
        typed = " ".join(f"--set {name}={value}" for name in self.fields(config))
        return self._with_words(f"{quote}{typed}{quote}" if typed else "", config)

    def _with_words(self, typed: str, config: Any) -> str:
        if self.settings and not typed:
            return f"-: {config.algorithm_name} has none, {' and '.join(self.settings)} is of other algorithms"
        return f"{typed}: {self.words}" if typed and self.words else typed or self.words


def _is(library: str, *settings: str, off: str = "", words: str = "") -> Known:
    return Known(library, settings, tuple(off.split()), words)


#: Keyword of a method or constructor there -> here.
SETTINGS: Final[Mapping[str, Known]] = {
    "activation_fn": _is("SB3", "model.activation", words='"tanh", "relu", ... by name'),
    "alpha": _is("CleanRL", "initial_alpha", words="alpha_lr=0 holds it"),
    "anneal_lr": _is("CleanRL", "lr", off="actor_lr critic_lr", words='`[[0, 3e-4], [N, 0]]`'),
    "autotune": _is("CleanRL", "alpha_lr", words="0 holds SAC's temperature at initial_alpha"),
    "batch_size": _is("SB3", "minibatch_size", off="train_batch_size"),
    "buffer_size": _is("SB3, CleanRL", "buffer_capacity"),
    "clip_coef": _is("CleanRL", "clip_param"),
    "clip_range": _is("SB3", "clip_param"),
    "clip_range_vf": _is("SB3", "vf_clip_range", words="takes the larger of both errors, as CleanRL does"),
    "clip_vloss": _is("CleanRL", "vf_clip_range", words="its value is the range, clip_coef there"),
    "create_env_on_local_worker": _is("RLlib", words="always so: the runner of this process evaluates"),
    "disable_env_checking": _is("RLlib", words="-: what environments answer is checked in every step, at little cost"),
    "ent_coef": _is("SB3, CleanRL", "entropy_coeff", off="initial_alpha", words="SAC learns it unless `alpha_lr=0`"),
    "entropy_coeff_schedule": _is("RLlib", "entropy_coeff", words="takes [[timestep, value], ...] itself"),
    "env_id": _is("CleanRL", "env"),
    "env_to_module_connector": _is("RLlib", "normalize_observations", words="or a wrapper of the environment"),
    "evaluation_duration": _is("RLlib", "evaluation_num_episodes", words="in episodes"),
    "exploration_config": _is("RLlib", words="`forward_exploration` of an RLModule"),
    "explore": _is("RLlib", words="training explores, evaluation does not"),
    "fcnet_activation": _is("RLlib", "model.activation"),
    "fcnet_hiddens": _is("RLlib", "model.hidden"),
    "fcnet_kernel_initializer": _is("RLlib", "model.init", words='"xavier_uniform", "orthogonal", ...'),
    "fcnet_use_layernorm": _is("RLlib", "model.layer_norm"),
    "features_extractor_class": _is("SB3", "rl_module_spec", words="a network of your own"),
    "gae_lambda": _is("SB3, CleanRL", "lambda_"),
    "gradient_steps": _is("SB3", "updates_per_step", words="gradient_steps / train_freq"),
    "gym_env_vectorize_mode": _is("RLlib", "vectorization"),
    "head_fcnet_hiddens": _is("RLlib", "model.hidden", words='{"encoder": [...], "pi": [...], "vf": [...]}'),
    "hidden_sizes": _is("TorchRL", "model.hidden"),
    "lambda": _is("RLlib", "lambda_"),
    "learner_connector": _is("RLlib", words="`preprocess_batch(module_id, batch)` of a Learner"),
    "learner_queue_size": _is("RLlib", "max_requests_in_flight_per_learner"),
    "learning_rate": _is("SB3, CleanRL", "lr", off="actor_lr critic_lr alpha_lr"),
    "log_level": _is("RLlib", words="Python's logging, logger \"learner_core\""),
    "log_std_clip_param": _is("RLlib", "model.log_std_range", words="[-20, 20] for a bound of 20"),
    "lr_schedule": _is("RLlib", "lr", off="actor_lr critic_lr alpha_lr", words="takes [[timestep, value], ...] itself"),
    "lstm_cell_size": _is("RLlib", "model.recurrent_size"),
    "lstm_hidden_size": _is("SB3", "model.recurrent_size"),
    "lstm_use_prev_action": _is("RLlib", "model.use_prev_action"),
    "lstm_use_prev_reward": _is("RLlib", "model.use_prev_reward"),
    "max_grad_norm": _is("SB3, CleanRL", "grad_clip"),
    "metrics_num_episodes_for_smoothing": _is("RLlib", words="means are over the last 100 episodes"),
    "min_sample_timesteps_per_iteration": _is("RLlib", "timesteps_per_iteration"),
    "min_time_s_per_iteration": _is("RLlib", "timesteps_per_iteration", words="iterations are of equal experience"),
    "model_config": _is("RLlib", "model"),
    "model_config_dict": _is("RLlib", "model"),
    "module_to_env_connector": _is("RLlib", words="a wrapper of the environment"),
    "n_envs": _is("SB3", "num_envs_per_env_runner"),
    "n_epochs": _is("SB3", "num_epochs"),
    "n_steps": _is("SB3", "train_batch_size", off="n_step", words="PPO: n_steps * n_envs timesteps"),
    "net_arch": _is("SB3", "model.hidden"),
    "norm_adv": _is("CleanRL", "normalize_advantages", words='"minibatch" is CleanRL\'s'),
    "normalize_actions": _is("RLlib", words="-: actions are in the environment's unit"),
    "normalize_advantage": _is("SB3", "normalize_advantages", words='"minibatch" is SB3\'s'),
    "num_aggregator_actors_per_learner": _is("RLlib", words="-: batches are put together where they are sampled"),
    "num_cpus_per_env_runner": _is("RLlib", words="-: each runner is a process of one thread"),
    "num_envs": _is("CleanRL, RLlib", "num_envs_per_env_runner"),
    "num_envs_per_worker": _is("RLlib", "num_envs_per_env_runner"),
    "num_gpus": _is("RLlib", "num_gpus_per_learner"),
    "num_gpus_per_env_runner": _is("RLlib", words="-: runners act by numpy or on the processor"),
    "num_minibatches": _is("CleanRL", "minibatch_size", words="train_batch_size / num_minibatches"),
    "num_rollout_workers": _is("RLlib", "num_env_runners"),
    "num_sgd_iter": _is("RLlib", "num_epochs"),
    "num_steps": _is("CleanRL", "train_batch_size", words="num_steps * num_envs"),
    "num_steps_sampled_before_learning_starts": _is("RLlib", "learning_starts"),
    "num_workers": _is("RLlib", "num_env_runners"),
    "observation_filter": _is("RLlib", "normalize_observations"),
    "opt_type": _is("RLlib", "optimizer"),
    "optimizer_class": _is("SB3", "optimizer"),
    "optimizer_kwargs": _is("SB3", "optimizer", words='{"kind": "adam", "eps": 1e-5}'),
    "ortho_init": _is("SB3", "model.init", words='"orthogonal", "uniform", ...'),
    "policy_kwargs": _is("SB3", "model", words='net_arch is "hidden", activation_fn "activation"'),
    "policy_lr": _is("CleanRL", "actor_lr"),
    "progress_bar": _is("SB3", words="`learner-core train` shows one"),
    "q_lr": _is("CleanRL", "critic_lr"),
    "q_model_config": _is("RLlib", "model", words="policy and Q networks have the same"),
    "replay_buffer_config": _is("RLlib", "buffer_capacity", "prioritized_replay", "priority_alpha", "priority_beta"),
    "restart_failed_env_runners": _is("RLlib", "max_env_runner_restarts", words="0: none is restarted"),
    "sgd_minibatch_size": _is("RLlib", "minibatch_size"),
    "simple_queue_size": _is("RLlib", "max_requests_in_flight_per_learner"),
    "stats_window_size": _is("SB3", words="means are over the last 100 episodes"),
    "store_buffer_in_checkpoints": _is("RLlib", words="the replay buffer is in every checkpoint"),
    "target_network_frequency": _is("CleanRL", "target_network_update_interval"),
    "target_update_interval": _is("SB3", "target_network_update_interval"),
    "tensorboard_log": _is("SB3", words="`learner-core train` writes TensorBoard, CSV and JSONL into its --out folder"),
    "torch_compile_learner": _is("RLlib", "compile"),
    "total_timesteps": _is("SB3, CleanRL", words="`algo.train()` in a loop; of a command `--stop-timesteps N`"),
    "train_batch_size_per_learner": _is("RLlib", "train_batch_size", words="of all learners together"),
    "train_freq": _is("SB3", "updates_per_step", words="gradient_steps / train_freq"),
    "training_intensity": _is("RLlib", "updates_per_step", words="training_intensity / train_batch_size"),
    "update_epochs": _is("CleanRL", "num_epochs"),
    "use_gae": _is("RLlib", "lambda_", words="GAE always; 1 is the plain return"),
    "use_lstm": _is("RLlib", "model.recurrent", words='"lstm" or "gru"'),
    "use_sde": _is("SB3", words="-: there is no state-dependent exploration"),
    "vec_env_cls": _is("SB3", "vectorization"),
    "verbose": _is("SB3", words="`learner-core train` reports; --quiet does not"),
    "vf_coef": _is("SB3, CleanRL", "vf_loss_coeff"),
    "vtrace": _is("RLlib", words="IMPALA and APPO always correct by V-trace"),
}  # fmt: skip

#: Method of a config there -> here.
METHODS: Final[Mapping[str, Known]] = {
    "build_algo": _is("RLlib", words="`.build()`"),
    "callbacks": _is("RLlib", words="hooks of a plugin (docs/reference/hooks.md)"),
    "experimental": _is("RLlib", words="-: `learner-core train ppo --help` lists every setting"),
    "exploration": _is("RLlib", words="`forward_exploration` of an RLModule"),
    "fault_tolerance": _is("RLlib", "max_env_restarts", "max_env_runner_restarts", "restart_failed_learners"),
    "get_config_for_module": _is("RLlib", words="`.for_module(module_id)`"),
    "get_default_learner_class": _is("RLlib", words="`.get_learner_class()`"),
    "get_default_rl_module_spec": _is("RLlib", words="`.get_module_class()`"),
    "get_rl_module_spec": _is("RLlib", words="`.get_module_class()` and `.module_settings()`"),
    "offline_data": _is("RLlib", words="`BCConfig().training(input_path=...)`, made by `learner-core record`"),
    "python_environment": _is("RLlib", words="-: processes have this one's environment variables"),
    "reporting": _is("RLlib", "timesteps_per_iteration", words="PPO reports after each train_batch_size"),
    "resources": _is("RLlib", "num_learners", "num_gpus_per_learner", "num_cpus_per_learner"),
    "rollouts": _is("RLlib", "num_env_runners", "num_envs_per_env_runner", "rollout_fragment_length"),
    "update_from_dict": _is("RLlib", words="`.training(**settings)`, `.env_runners(**settings)`, ..."),
}  # fmt: skip

#: Attribute of an algorithm (of RLlib) or of a model (of SB3) -> here.
ALGORITHM: Final[Mapping[str, Known]] = {
    "add_policy": _is("RLlib", words="`algo.add_module(module_id=..., module_spec=...)`"),
    "compute_actions": _is("RLlib", words='`lc.export(algo, "policy.onnx")`, or `algo.evaluate()`'),
    "compute_single_action": _is("RLlib", words='`lc.export(algo, "policy.onnx")`, or `algo.evaluate()`'),
    "env_runner_group": _is("RLlib", words="`algo.env_runners`; the one in this process is `algo.runner`"),
    "export_model": _is("RLlib", words='`lc.export(algo, path, to="torch")`'),
    "export_policy_model": _is("RLlib", words='`lc.export(algo, path, to="torch")`'),
    "get_env": _is("SB3", words="`algo.runner` has the environments"),
    "get_module": _is("RLlib", words="`algo.learner_group.module_specs` and `algo.learner_group.get_weights()`"),
    "get_parameters": _is("SB3", words="`algo.learner_group.get_weights()`"),
    "get_policy": _is("RLlib", words="`algo.learner_group.module_specs` and `algo.learner_group.get_weights()`"),
    "get_weights": _is("RLlib", words="`algo.learner_group.get_weights()`"),
    "learn": _is("SB3", words="`for _ in range(n): algo.train()`, or `learner-core train ppo --stop-timesteps N`"),
    "learner": _is("RLlib", words="`algo.learner_group.foreach_learner(f)`"),
    "load": _is("SB3", words="`lc.Algorithm.from_checkpoint(path)`, or `algo.restore(path)` into this one"),
    "load_checkpoint": _is("RLlib", words="`algo.restore(path)`"),
    "load_replay_buffer": _is("SB3", words="the replay buffer is in every checkpoint: `algo.restore(path)`"),
    "logger": _is("SB3", words="the results of `algo.train()`; `learner-core train` writes TensorBoard"),
    "metrics": _is("RLlib", words="the results of `algo.train()`"),
    "num_timesteps": _is("SB3", words="`algo.num_env_steps_sampled_lifetime`"),
    "policy": _is("SB3", words='`algo.learner_group.get_weights()`, or `lc.export(algo, "policy.onnx")`'),
    "predict": _is("SB3", words='`lc.export(algo, "policy.onnx")`, or `algo.evaluate()`'),
    "remove_policy": _is("RLlib", words="`algo.remove_module(module_id)`"),
    "replay_buffer": _is("SB3", words="`algo.get_state()` has it, under extra"),
    "restore_from_path": _is("RLlib", words="`algo.restore(path)`"),
    "save_checkpoint": _is("RLlib", words="`algo.save(path)`"),
    "save_replay_buffer": _is("SB3", words="`algo.save(path)`: the replay buffer is in every checkpoint"),
    "save_to_path": _is("RLlib", words="`algo.save(path)`"),
    "set_env": _is("SB3", words="`lc.Algorithm.from_checkpoint(path, env=...)`"),
    "set_parameters": _is("SB3", words="`algo.set_weights(weights)`"),
    "step": _is("RLlib", words="`algo.train()`"),
    "training_iteration": _is("RLlib", words="`algo.iteration`"),
    "workers": _is("RLlib", words="`algo.env_runners`; the one in this process is `algo.runner`"),
}  # fmt: skip

#: Attribute of a Learner or a LearnerGroup there -> here.
LEARNER: Final[Mapping[str, Known]] = {
    "_get_tensor_variable": _is("RLlib", words="`self.register_variable(module_id=..., name=..., value=...)`"),
    "additional_update": _is("RLlib", words="`after_gradient_based_update(timesteps)`"),
    "additional_update_for_module": _is("RLlib", words="`after_gradient_based_update(timesteps)`"),
    "compute_loss": _is("RLlib", words="`compute_losses(fwd_out, batch)`"),
    "curr_kl_coeffs_per_module": _is("RLlib", words='`self.variables[module_id]["kl_coeff"]`'),
    "curr_log_alpha": _is("RLlib", words='`self.variables[module_id]["log_alpha"]`'),
    "filter_param_dict_for_optimizer": _is("RLlib", words="`self.register_optimizer(params=...)` takes names"),
    "get_optimizer": _is("RLlib", words='`self.get_state()`, under "optimizer"'),
    "get_optimizers_for_module": _is("RLlib", words='`self.get_state()`, under "optimizer"'),
    "metrics": _is("RLlib", words="`self.log(name, value)`"),
    "register_metric": _is("RLlib", words="`self.log(name, value)`"),
    "register_metrics": _is("RLlib", words="`self.log(name, value)`"),
    "restore_from_path": _is("RLlib", words="`learner.load_state(path)`"),
    "save_to_path": _is("RLlib", words="`learner.save_state(path)`"),
    "update": _is("RLlib", words="`learner.update_from_batch(batch=..., timesteps=...)`"),
    "update_from_episodes": _is("RLlib", words="`learner.update_from_batch(batch=..., timesteps=...)`"),
}  # fmt: skip

#: Class of a model there -> here.
CLASSES: Final[Mapping[str, Known]] = {
    "A2C": _is(
        "SB3",
        words="`PPOConfig().environment(env).training(num_epochs=1, minibatch_size=None, use_kl_loss=False, "
        'lambda_=1.0, normalize_advantages="off", lr=7e-4, optimizer={"kind": "rmsprop", "eps": 1e-5}).build()`',
    ),
    "APPO": _is("RLlib", words="`APPOConfig().environment(env).build()`"),
    "BC": _is("RLlib", words="`BCConfig().environment(env).training(input_path=...).build()`"),
    "IMPALA": _is("RLlib", words="`IMPALAConfig().environment(env).build()`"),
    "MaskablePPO": _is("SB3", words="`PPOConfig().environment(env, action_mask_in_info=True).build()`"),
    "PPO": _is("SB3, RLlib", words="`PPOConfig().environment(env).build()`"),
    "RecurrentPPO": _is("SB3", words='`PPOConfig().environment(env).rl_module(model={"recurrent": "lstm"}).build()`'),
    "SAC": _is("SB3, RLlib", words="`SACConfig().environment(env).build()`"),
}  # fmt: skip

#: Option of a command there -> of `learner-core train` here; one that is missing is a setting, or none.
OPTIONS: Final[Mapping[str, Known]] = {
    "algo": _is("SB3", words="`learner-core train ALGORITHM`"),
    "capture-video": _is("CleanRL", words="-: there is no video yet"),
    "checkpoint-freq": _is("RLlib", "checkpoint_every"),
    "env-id": _is("CleanRL", words="`--env NAME`"),
    "env-kwargs": _is("SB3", "env_config", words='as TOML: `--set env_config={key="value"}`'),
    "eval-episodes": _is("SB3", "evaluation_num_episodes"),
    "eval-freq": _is("SB3", "evaluation_interval", words="in iterations"),
    "exp-name": _is("CleanRL", words="`--out DIR`"),
    "framework": _is("RLlib", words="`--backend NAME`"),
    "hyperparams": _is("SB3", words="`--set KEY=VALUE`, or `--config FILE`"),
    "local-dir": _is("RLlib", words="`--out DIR`"),
    "log-folder": _is("SB3", words="`--out DIR`"),
    "n-timesteps": _is("SB3", words="`--stop-timesteps N`"),
    "restore": _is("RLlib", words="`--resume DIR`"),
    "run": _is("RLlib", words="`learner-core train ALGORITHM`"),
    "save-freq": _is("SB3", "checkpoint_every", words="in iterations"),
    "stop-iters": _is("RLlib", words="`--stop-iterations N`"),
    "stop-reward": _is("RLlib", words="`--stop-return R`"),
    "task": _is("Tianshou", words="`--env NAME`"),
    "timesteps": _is("SB3", words="`--stop-timesteps N`"),
    "total-timesteps": _is("CleanRL", words="`--stop-timesteps N`"),
    "track": _is("CleanRL", words="TensorBoard, CSV and JSONL files are written into `--out`"),
    "trained-agent": _is("SB3", words="`--resume DIR`"),
    "verbose": _is("SB3", words="`--quiet` for less"),
}  # fmt: skip

#: Command there -> of `learner-core` here.
COMMANDS: Final[Mapping[str, Known]] = {
    "enjoy": _is("SB3", words="`learner-core evaluate PATH`"),
    "learn": _is("SB3", words="`learner-core train ALGORITHM`"),
    "predict": _is("SB3", words="`learner-core evaluate PATH`, or `learner-core record PATH`"),
    "rollout": _is("RLlib", words="`learner-core evaluate PATH`"),
    "run": _is("RLlib", words="`learner-core train ALGORITHM`"),
    "tune": _is("RLlib", words="-: any tuner can call `learner-core train ALGORITHM --set KEY=VALUE`"),
}
