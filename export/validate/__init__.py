"""Comparing outputs, kept tokens and batch invariance with torch, and naming the first divergent node."""
