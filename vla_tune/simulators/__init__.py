"""Closed loop: policies act in simulators. `registry.py` says which there are; each is a folder of its own (`base.Simulator`)."""
