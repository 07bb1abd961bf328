"""What the train stage is made of: its setup, its loop, its checkpoints, its export."""
