"""Training: recipes, the loop, optimizer and schedules, exact checkpoints, distribution, progress and logs."""
