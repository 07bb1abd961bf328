"""Intervals, the bootstrap and paired tests: pure functions of numbers, used wherever an estimate is reported."""
