"""Measures the product beside what a user would pick instead; README.md lists the commands."""
