"""Train a system. Ctrl-C saves; 'cambrian resume last' carries on."""

from __future__ import annotations

import argparse

from cambrian.cli.console import json_option, print_json, print_table, training_progress


def arguments(parser: argparse.ArgumentParser) -> None:
    """What determines a run."""
    parser.add_argument("slug")
    parser.add_argument("--preset", default="laptop", help="smoke (seconds), laptop (default) or paper")
    parser.add_argument("--data", help="a path, a name under $CAMBRIAN_DATA, an embedded name, or hub:owner/name")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="replace a configuration field"
    )
    parser.add_argument("--with", action="append", default=[], dest="with_", metavar="METHOD[:OPTION=VALUE,...]", help="add a training method")  # fmt: skip
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--precision", default="fp32", help="fp32 or bf16")
    parser.add_argument("--threads", type=int, help="torch threads (default: all cores)")
    parser.add_argument("--log-every", type=int, help="steps between logged records")
    parser.add_argument("--checkpoint-every", type=int, help="steps between checkpoints (default: a fifth of the run)")
    parser.add_argument("--tensorboard", action="store_true", help="also write TensorBoard files into the run")
    json_option(parser)


def run(args: argparse.Namespace) -> int:
    """Train and print the test figures."""
    from cambrian.engine import train
    from cambrian.engine.config import parse_settings
    from cambrian.engine.run import spec_for

    if args.threads:
        import torch

        torch.set_num_threads(args.threads)
    settings = parse_settings(args.set)
    spec, config = spec_for(
        args.slug, preset=args.preset, seed=args.seed, data=args.data, with_=args.with_, precision=args.precision,
        device=args.device, settings=settings,
    )  # fmt: skip
    if args.tensorboard:
        from cambrian.engine.exporters import require_tensorboard

        require_tensorboard()
    with training_progress(spec.slug) as report:
        made = train.start(
            spec, config, log_every=args.log_every, checkpoint_every=args.checkpoint_every, report=report
        )
    if args.tensorboard:
        from cambrian.engine.exporters import to_tensorboard

        to_tensorboard(made)
    show(made, args.json)
    return 0


def show(made: object, as_json: bool) -> None:
    """Where the run is and what it reached."""
    from cambrian.engine.run import Run

    assert isinstance(made, Run)
    figures = made.info.get("figures") or {}
    if as_json:
        print_json({"run": made.id, "path": str(made.path), "status": made.info["status"], "step": made.info["step"], "figures": figures})  # fmt: skip
        return
    print_table(["test figure", "value"], list(figures.items()))
    print(f"{made.info['status']} at step {made.info['step']}: {made.path}")
    if made.info["status"] == "stopped":
        print("carry on with: cambrian resume last")
