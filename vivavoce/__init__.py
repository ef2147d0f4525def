"""Vivavoce: real-time, text-free voice conversion."""
