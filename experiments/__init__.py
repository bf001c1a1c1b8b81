"""Experiments: what the papers claim, run again on real data, with their number beside ours and a verdict."""
