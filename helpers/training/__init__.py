"""The loop, the state it changes, checkpoints, and copies on Drive."""
