"""Mixtures of low-rank experts on stock linear layers, and the two phases of iGSP (arXiv 2605.19301) that grow them.

The paper's code and formulas are not public. What is its own (experts, routers, the two phases) and what is our choice is
told in docs/continual.md.
"""
