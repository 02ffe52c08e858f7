"""Operators of the flowgrad domain that derivatives are made with."""
