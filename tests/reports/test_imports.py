"""A report is made from artifacts alone: without torch, lerobot and simulators, and without the code of stages."""

import os
import pkgutil
import subprocess
import sys

import vla_tune.reports

HEAVY = ("torch", "lerobot", "transformers", "mujoco", "metaworld", "libero")
ROOMS = ("stages", "engine", "methods", "learners", "simulators", "cli")


def test_reports_import_no_stage_and_nothing_heavy():
    modules = [module.name for module in pkgutil.walk_packages(vla_tune.reports.__path__, "vla_tune.reports.")]
    assert "vla_tune.reports.plots.style" in modules
    code = f"""import sys
for name in {HEAVY!r}:
    sys.modules[name] = None
for room in {ROOMS!r}:
    sys.modules[f"vla_tune.{{room}}"] = None
for name in {modules!r}:
    __import__(name)
"""
    ran = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, env=dict(os.environ))
    assert ran.returncode == 0, ran.stderr
