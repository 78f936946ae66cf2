"""Fine-tuning: one task, each family's own formulation of it."""
