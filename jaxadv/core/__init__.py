"""Core: types, random numbers, devices, losses, result records, and files."""
