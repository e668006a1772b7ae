"""Memory-Efficient Backpropagation Through Time.

Audrunas Gruslys, Remi Munos, Ivo Danihelka, Marc Lanctot, Alex Graves. NIPS 2016. arXiv 1606.03401.

Trains any recurrent cell on long sequences inside a memory budget that the user states. Dynamic programming decides which
states to keep and which to compute again, so that the gradient is exact and no schedule for that budget recomputes less.

Claim: for 1,000 steps, 95 % of the memory of backpropagation through time is saved for about a third more work.

    C(t, m): fewest step executions to backpropagate t steps with m units of memory, a hidden state taking 1 unit

    hidden states only    C(t, m) = min_{1<=y<t}  y + C(t-y, m-1) + C(y, m)              C(t, 1) = t (t+1) / 2
    internal states only  C(t, m) = min_{1<=y<=t} y + C(t-y, m-1) + C(y-1, m)            m internal states
    mixed (the paper's)   at each split the cheaper of  y + C(t-y, m-1) + C(y, m)  and  y + C(t-y, m-alpha) + C(y-1, m)

    mixed (exact, default), by what the segment starts from: k = hidden (1 unit) or internal (alpha units)
    V_k(t, m) = min of  t + V_k(t-1, m)
                        y + V_hid(t-y, m-size(k)) + V_k(y, m)         1 <= y < t
                        y + V_int(t-y, m-size(k)) + V_k(y-1, m)       1 <= y < t
                        1 + V_int(t-1, m)                             k = hidden: its first step's internals replace it

A hidden state is what passes between steps; an internal state is all that one step needs to be backpropagated.

    from cambrian.systems.perception.efficient_bptt import bptt, memory_of, plan
    memory = memory_of(cell, x, state)
    loss = bptt(cell, x, state, loss_fn, plan(len(x), budget=350, alpha=memory.alpha))

Differs from the paper:
- the default is the exact optimum over all schedules with hidden and internal states; at small budgets it needs a few step
  executions less than the paper's mixed recursion (`kind="mixed-paper"`), whose boundary cases are ours
- the generator's state is kept with each stored state, so that dropout is recomputed alike; a loss may stand at every step
- sequences too long for a table are cut into chunks first, and a stream of unknown length keeps states at a doubling stride:
  both are good, neither is proved optimal
- alpha, a ratio of measured bytes, is rounded up to a whole number of hidden states

Checkpointing by recomputation is older (Griewank & Walther 2000, whose binomial form `kind="hidden"` uses; Chen et al. 2016,
arXiv 1604.06174). US patent 11,256,990 covers the method of this paper; check before commercial use.

Shapes: T steps, B batch, H units of the state.
"""

from __future__ import annotations

from cambrian.systems.perception.efficient_bptt._execute import (
    Memory,
    Meter,
    bptt,
    bptt_stream,
    fused_stretch,
    memory_budget,
    memory_of,
    plan_for,
)
from cambrian.systems.perception.efficient_bptt._plan import Action, Plan, plan

__all__ = [
    "Action",
    "Memory",
    "Meter",
    "Plan",
    "bptt",
    "bptt_stream",
    "fused_stretch",
    "memory_budget",
    "memory_of",
    "plan",
    "plan_for",
]
