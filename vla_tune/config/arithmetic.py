"""Numbers that are each within their bounds and cannot work together."""

from __future__ import annotations

from math import ceil

from vla_tune.config.schema import Config, DataConfig, TrainConfig
from vla_tune.errors import UserError


def check_arithmetic(config: Config) -> None:
    """Nothing, where the numbers of a configuration can work together.

    Raises:
        UserError: they cannot; the message says which would.

    """
    _check_micro_batches(config.train)
    _check_episodes(config.data)
    if config.stream.tasks and config.method.name == "igsp":
        _check_looks(config)


def doubts(config: Config) -> list[str]:
    """What a training with these numbers would never do, or would do otherwise than they say."""
    train, own = config.train, config.method
    found = []
    if train.warmup_steps > train.steps:
        found.append(
            f"train.warmup_steps={train.warmup_steps}: training ends at step {train.steps}, before the learning rate has risen to train.lr"
        )
    if train.eval_every > train.steps and not config.stream.tasks:
        found.append(f"train.eval_every={train.eval_every}: training ends at step {train.steps}, and nothing is measured")
    if own.name == "warmup" and own.warmup.steps >= train.steps:
        found.append(f"method.warmup.steps={own.warmup.steps}: training ends at step {train.steps}, and the VLM never trains")
    chunk = config.policy.settings.get("chunk_size")
    if isinstance(chunk, int) and config.rollout.n_action_steps > chunk:
        found.append(
            f"rollout.n_action_steps={config.rollout.n_action_steps}: the policy predicts policy.settings.chunk_size={chunk} actions at a "
            "time, and eval-rollout will refuse to execute more"
        )
    return found


def _check_micro_batches(train: TrainConfig) -> None:
    size, parts = train.batch_size, train.accumulate
    if size % parts == 0:
        return
    sizes = [near for near in (size // parts * parts, (size // parts + 1) * parts) if near]
    fewer = next(number for number in range(parts, 0, -1) if size % number == 0)
    more = next((number for number in range(parts, size + 1) if size % number == 0), fewer)
    numbers = " or ".join(map(str, sorted({fewer, more})))
    raise UserError(
        f"train.accumulate={parts}: must divide train.batch_size={size}; set train.batch_size={' or '.join(map(str, sizes))}, "
        f"or train.accumulate={numbers}"
    )


def _check_episodes(data: DataConfig) -> None:
    if data.episodes is None:
        return
    if not data.episodes:
        raise UserError("data.episodes=[]: name at least one episode, or leave the key out for all")
    count = len(set(data.episodes))
    if not data.heldout or int(data.heldout * count):
        return
    remedy = f"set at least {ceil(1000 / count) / 1000:g}" if count > 1 else "one alone is trained on; leave data.heldout out"
    raise UserError(f"data.heldout={data.heldout:g}: of the episodes that data.episodes names ({count}) none is left out; {remedy}")


def _check_looks(config: Config) -> None:
    own, steps = config.method.igsp, config.train.steps
    latest = own.most * steps
    if own.check_every > latest:
        raise UserError(
            f"method.igsp.check_every={own.check_every}: phase 1 takes {latest:g} of train.steps={steps} "
            "at most, and its routers would never be looked at; lower it"
        )
