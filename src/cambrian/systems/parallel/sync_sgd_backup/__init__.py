"""Revisiting Distributed Synchronous SGD.

Jianmin Chen, Xinghao Pan, Rajat Monga, Samy Bengio, Rafal Jozefowicz. ICLR 2017 workshop. arXiv 1604.00981.

Synchronous data-parallel SGD waits for its slowest worker, asynchronous SGD applies stale gradients. Here N + b workers
are started, each step takes the first N gradients stamped with it and drops the rest: no gradient is stale, and b
stragglers cost nothing. Beside it the tools of the analysis: asynchronous SGD, serial SGD with a chosen staleness,
arrival times, and the choice of b from order statistics.

Claim: with 10 % of the gradients five times slower, 4 workers and 2 backups reach training loss 0.2 in at most 0.7 of
the wall-clock time of 4 workers without backups.

    sync + backup:  theta_{t+1} = theta_t - gamma (1/N) sum over the first N arrivals g_i(theta_t),  N + b workers
    async:          theta_{t+1} = theta_t - gamma g_i(theta_{t - tau})
    total time      = iterations(N) E[T_(N of N+b)],      b chosen where it is least
    T ~ shift + Exp(rate):  E[T_(k of n)] = shift + (H_n - H_{n-k}) / rate
    gamma = gamma_0 N       (of the workers that count: N, not N + b)

Differs from the paper:
- a small convolutional network on scikit-learn's digits with plain SGD in place of Inception on ImageNet; RMSProp with
momentum and the moving average of the weights are options
- stragglers are injected sleeps, because worker processes share one host
- a worker that is late gives up its gradient while it sleeps (`abandon`); with `abandon=False`, and on Ray, it ends it first
- the parameter server is one process; its variables are not spread over several
- buffers (batch-norm statistics) stay with each worker

Shapes: P parameters, W = N + b workers, T steps.
"""

from __future__ import annotations

from cambrian.systems.parallel.sync_sgd_backup._orders import Plan, exponential_order, mean_order, plan_backups
from cambrian.systems.parallel.sync_sgd_backup._stale import StaleSGD
from cambrian.systems.parallel.sync_sgd_backup.model import Accumulator, RunLog, SyncBackup

__all__ = ["Accumulator", "Plan", "RunLog", "StaleSGD", "SyncBackup", "exponential_order", "mean_order", "plan_backups"]
