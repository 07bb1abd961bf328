"""`train.reference=true` is lerobot's own training, to the bit."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from lerobot.datasets.sampler import EpisodeAwareSampler
from lerobot.scripts.lerobot_train import update_policy
from lerobot.utils.collate import lerobot_collate_fn
from lerobot.utils.logging_utils import AverageMeter, MetricsTracker
from lerobot.utils.utils import cycle
from safetensors.torch import load_file
from torch.utils.data import DataLoader

from vla_tune.data.demonstrations import dataset_metadata, open_dataset
from vla_tune.learners.start import make_start
from vla_tune.stages import train

STEPS = 12
"""Of four samples; an epoch has 30, so its last batch is short."""


def by_lerobot(config):
    """The weights after as many steps of lerobot's own loop over the same data, from the same start."""
    start = make_start(config)
    policy, (preprocess, _) = start.policy, start.processors
    dataset = open_dataset(dataset_metadata(config.data), policy.config)
    episodes = dataset.meta.episodes
    sampler = EpisodeAwareSampler(episodes["dataset_from_index"], episodes["dataset_to_index"], shuffle=True, seed=config.seed)
    loader = DataLoader(
        dataset, batch_size=config.train.batch_size, sampler=sampler, collate_fn=lerobot_collate_fn, generator=torch.Generator()
    )
    preset, schedule = policy.config.get_optimizer_preset(), policy.config.get_scheduler_preset()
    preset.lr = schedule.peak_lr = config.train.lr
    schedule.decay_lr = config.train.lr * 2.5e-6 / 1e-4
    schedule.num_warmup_steps, schedule.num_decay_steps = config.train.warmup_steps, config.train.steps
    optimizer = preset.build(policy.get_optim_params())
    scheduler = schedule.build(optimizer, config.train.steps)
    names = ("loss", "grad_norm", "lr", "update_s", "gpu_mem_gb")
    tracker = MetricsTracker(config.train.batch_size, 30, 3, {name: AverageMeter(name) for name in names})
    torch.manual_seed(config.seed)
    batches = cycle(loader)
    for _ in range(config.train.steps):
        batch = next(batches)
        pictures = {key: value.float() / 255 for key, value in batch.items() if getattr(value, "dtype", None) == torch.uint8}
        update_policy(
            tracker, policy, preprocess({**batch, **pictures}), optimizer, preset.grad_clip_norm, Accelerator(cpu=True), scheduler
        )
    return policy.state_dict()


def test_the_reference_mode_is_lerobots_training_to_the_bit(small_config, tmp_path):
    config = small_config(f"train.steps={STEPS}", "train.reference=true", "device=cpu", "train.checkpoint_every=100")
    train.run(config, tmp_path)
    ours, theirs = load_file(tmp_path / "train" / "policy" / "model.safetensors"), by_lerobot(config)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def test_the_defaults_are_another_run(small_config, tmp_path):
    """Their draws, whole batches and Adam in one kernel are what differs: nothing else is switched by `train.reference`."""
    train.run(small_config("train.steps=2"), tmp_path / "default")
    train.run(small_config("train.steps=2", "train.reference=true"), tmp_path / "reference")
    one, other = (load_file(tmp_path / name / "train" / "policy" / "model.safetensors") for name in ("default", "reference"))
    assert any(not torch.equal(tensor, other[name]) for name, tensor in one.items())
