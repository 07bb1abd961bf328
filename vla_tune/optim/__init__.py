"""The subspace projection for training loops that are not ours; lerobot finds its optimizer here.

`lerobot-train --optimizer.discover_packages_path=vla_tune.optim --optimizer.type=subspace_adamw --optimizer.anchor=RUN/anchor`
"""
