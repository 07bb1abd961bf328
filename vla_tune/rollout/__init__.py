"""The old name of `vla_tune.simulators`, which `lerobot-eval --env.discover_packages_path=vla_tune.rollout` is told in scripts."""

import vla_tune.simulators.plugin  # noqa: F401 - registers the environments
