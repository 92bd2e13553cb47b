"""The paper's experiments, done again on real images."""
