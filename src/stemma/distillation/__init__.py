"""Distillation: students that learn from teachers, from one or many, by logits, by texts, on their own words."""
