"""Defaults of other libraries, for the table in docs/migrating.md: where each figure is from.

RLlib: ``PPOConfig()``, ``SACConfig()``, ``APPOConfig()``, ``BCConfig()`` and ``DefaultModelConfig()`` of ray 2.60.0,
printed; its Q error is in sac_torch_learner.py, the bounds of log std in utils/numpy.py. Stable-Baselines3: signatures
of ``PPO`` and ``SAC`` and of their policies, https://stable-baselines3.readthedocs.io (modules/ppo.html and sac.html).
"""

from __future__ import annotations

__all__ = ["RLLIB", "SB3"]

RLLIB = {
    ("PPO", "lr"): "5e-5",
    ("PPO", "train_batch_size"): "4000",
    ("PPO", "minibatch_size"): "128",
    ("PPO", "num_epochs"): "30",
    ("PPO", "lambda_"): "1.0",
    ("PPO", "clip_param"): "0.3",
    ("PPO", "vf_loss_coeff"): "1.0",
    ("PPO", "vf_clip_param"): "10.0",
    ("PPO", "grad_clip"): "None",
    ("PPO", "use_kl_loss"): "True",
    ("PPO", "normalize_advantages"): "batch",
    ("PPO", "num_envs_per_env_runner"): "1",
    ("PPO", "num_env_runners"): "2",
    ("PPO", "hidden"): "[256, 256]",
    ("PPO", "vf_share_layers"): "True",
    ("PPO", "free_log_std"): "False",
    ("PPO", "eps"): "1e-8",
    ("APPO", "target_network_update_freq"): "2",
    ("APPO", "hidden"): "[256, 256]",
    ("APPO", "num_envs_per_env_runner"): "1",
    ("APPO", "max_requests_in_flight_per_learner"): "32",
    ("APPO", "timesteps_per_iteration"): "none",
    ("SAC", "actor_lr"): "3e-5",
    ("SAC", "learning_starts"): "1500",
    ("SAC", "q_loss"): "huber",
    ("SAC", "log_std"): "(-5, 2)",
    ("SAC", "prioritized_replay"): "True",
    ("SAC", "timesteps_per_iteration"): "100",
    ("BC", "lr"): "1e-4",
    ("BC", "train_batch_size"): "2000",
}

SB3 = {
    ("PPO", "lr"): "3e-4",
    ("PPO", "train_batch_size"): "2048",
    ("PPO", "minibatch_size"): "64",
    ("PPO", "num_epochs"): "10",
    ("PPO", "lambda_"): "0.95",
    ("PPO", "clip_param"): "0.2",
    ("PPO", "vf_loss_coeff"): "0.5",
    ("PPO", "vf_clip_param"): "none",
    ("PPO", "grad_clip"): "0.5",
    ("PPO", "use_kl_loss"): "none",
    ("PPO", "normalize_advantages"): "minibatch",
    ("PPO", "num_envs_per_env_runner"): "1",
    ("PPO", "num_env_runners"): "none",
    ("PPO", "hidden"): "[64, 64]",
    ("PPO", "vf_share_layers"): "False",
    ("PPO", "free_log_std"): "True",
    ("PPO", "eps"): "1e-5",
    ("SAC", "actor_lr"): "3e-4",
    ("SAC", "learning_starts"): "100",
    ("SAC", "q_loss"): "mse",
    ("SAC", "log_std"): "(-20, 2)",
    ("SAC", "prioritized_replay"): "none",
    ("SAC", "timesteps_per_iteration"): "none",
}
