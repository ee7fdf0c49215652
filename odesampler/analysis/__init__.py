"""Analyses: measurements of models and solvers, with tables and pictures."""
