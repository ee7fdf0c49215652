"""Tuning: the best sampler for one model at one number of steps, found by measurement. `tune` is the verb."""
