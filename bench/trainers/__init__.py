"""The trainers that `bench/train.py` compares, each run in a process of its own, and what they are given."""
