"""Test errors in per cent that the paper's table 1 gives at 1,000 questions a task, as remembered, unverified; tasks 1 to 20."""

PE_LS_RN = (0.0, 8.3, 40.3, 2.8, 13.1, 7.6, 17.3, 10.0, 13.2, 15.1, 0.9, 0.2, 0.4, 1.7, 0.0, 1.3, 51.0, 11.1, 82.8, 0.0)
"""3 hops, trained on each task alone: position encoding, linear start, random noise."""

LSTM = (
    50.0,
    80.0,
    80.0,
    39.0,
    30.0,
    52.0,
    51.0,
    55.0,
    36.0,
    56.0,
    38.0,
    26.0,
    6.0,
    73.0,
    79.0,
    77.0,
    49.0,
    48.0,
    92.0,
    9.0,
)
"""The LSTM of Weston et al. (2015)."""
