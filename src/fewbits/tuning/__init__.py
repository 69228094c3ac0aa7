"""Tuning what a container holds as real numbers, by distillation from the original, once codes are chosen."""
