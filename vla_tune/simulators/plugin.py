"""What `lerobot-eval --env.discover_packages_path=vla_tune.simulators` imports: registers the environments of what is installed."""

from vla_tune.simulators.registry import simulators

for _simulator in simulators().values():
    if _simulator.installed():
        _simulator.register()
