"""Diagnosis of a user's own data: k and locality, short training and long testing, a verdict."""
