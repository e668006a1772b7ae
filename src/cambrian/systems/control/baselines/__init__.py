"""Baselines: DQN, A2C and PPO.

OpenAI Baselines 2017; DQN: Mnih et al. Nature 2015; double: 1509.06461; prioritised: 1511.05952; duelling: 1511.06581; A3C: 1602.01783; GAE: 1506.02438; PPO: Schulman et al. arXiv 1707.06347.

The standard deep reinforcement-learning algorithms on one engine: a value learner with replay (DQN with double, duelling,
prioritised and n-step learning) and two policy learners with rollouts (A2C, PPO), in batched environments. PPO's new idea is to
take several epochs of minibatch steps on one rollout while a clipped objective keeps the policy near the one that collected it.

Claim: PPO's clipped objective learns better than the same code with the probability ratio left unclipped.

    PPO    L = -E[min(rho A, clip(rho, 1 - eps, 1 + eps) A)] + c_v (V - R)^2 / 2 - c_e H,   rho = pi(a|s) / pi_old(a|s)
    GAE    A_t = delta_t + gamma lam A_{t+1},   delta_t = r_t + gamma V(s_{t+1}) - V(s_t)
    A2C    L = -E[log pi(a|s) A] + ...                 (PPO with one epoch on one minibatch: rho = 1)
    DQN    L = E[w huber(r + gamma Q^-(s', argmax_a Q(s', a)) - Q(s, a))],   Q = V + A - mean_a A,   P(i) ~ |TD|^alpha

Differs from the paper:
- ACER, ACKTR, TRPO, DDPG and hindsight replay are not here
- rollouts of several environments and 200 steps instead of one and 2048; observation and reward normalisation are switches, off by default
- DQN's defaults are for small networks (Adam 1e-3, 20,000 transitions, a target copy every 1,000 steps); next observations are
  stored beside observations, so images take twice the memory that frame sharing would need
- the claim is tried on CartPole and Pendulum instead of seven MuJoCo tasks, and measured against fixed returns: 0 is the random
  policy's, 1 is 500 on CartPole (the highest possible) and -150 on Pendulum (what well-tuned agents reach)
- the interquartile mean is printed without its bootstrap interval
- gymnasium environments (env=gym:ID) begin new episodes when a run is resumed; embedded ones resume exactly

Shapes: B environments, T steps of a rollout, A actions or action dimensions, n samples of a minibatch
"""

from __future__ import annotations

from cambrian.systems.control.baselines._study import BaselinesStudy
from cambrian.systems.control.baselines.model import ActorCritic, Agent, QNetwork
from cambrian.systems.control.baselines.recipe import BaselinesRecipe, Config

__all__ = ["ActorCritic", "Agent", "BaselinesRecipe", "BaselinesStudy", "Config", "QNetwork"]
