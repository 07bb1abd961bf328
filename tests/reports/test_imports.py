"""A report is made from artifacts alone: without torch, lerobot and simulators, and without the code of stages."""

import os
import pkgutil
import subprocess
import sys

import vla_tune.methods
import vla_tune.reports

HEAVY = ("torch", "lerobot", "transformers", "mujoco", "metaworld", "libero")
ROOMS = ("stages", "engine", "learners", "simulators", "cli")
OPTIONS = "options"
"""Of the methods, what is part of the schema."""


def test_reports_import_no_stage_and_nothing_heavy():
    modules = [module.name for module in pkgutil.walk_packages(vla_tune.reports.__path__, "vla_tune.reports.")]
    assert "vla_tune.reports.plots.style" in modules
    code_of_methods = [one.name for one in pkgutil.iter_modules(vla_tune.methods.__path__) if one.name != OPTIONS]
    closed = [*(f"vla_tune.{room}" for room in ROOMS), *(f"vla_tune.methods.{name}" for name in code_of_methods)]
    assert "vla_tune.methods.full" in closed
    code = f"""import sys
for name in {HEAVY!r}:
    sys.modules[name] = None
for name in {closed!r}:
    sys.modules[name] = None
for name in {modules!r}:
    __import__(name)
"""
    ran = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, env=dict(os.environ))
    assert ran.returncode == 0, ran.stderr
