"""Controlled experiments: frameworks side by side, and the claims of papers."""
