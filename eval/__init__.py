"""Attacks on a release, its utility, and the report about both."""
